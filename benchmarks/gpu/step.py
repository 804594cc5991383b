"""Part (b): an optimiser step of the reference recipe: plain fine-tuning, on a cache of either kind, with the int8 teacher in memory.

Micro-batches of 2 samples of about 1,300 tokens, 4 to a step, gradient checkpointing, bf16 compute. Distillation is `prepare`
and `train` of `phase2_student.training`, self-check included, on a cache of made-up targets; models are made on the device instead
of being loaded, items are made before the clock starts, and the student is not saved. So only the trainer and the device are timed;
`benchmarks/gpu/dump.py` times the images.

Estimated for an H100: `fs-student plan` gives the cached step 42.7 GB with float32 masters and 22.6 GB with Kahan's remainder: the
column `planned GB`. Online, the int8 teacher adds 9.4 GB, its float32 head 2.2 and a forward pass 3; the plain step's
logits of a micro-batch are 5 GB. A step is 0.45 PFLOP for the student and 0.22 for the teacher: 1 to 3 s. Exact targets
add the head's 1.1 GB in bfloat16 and a projection of 320 positions to a step, 0.3 TFLOP. Seven rows of 4 steps and their models,
and an exact cache: 160 s.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_flash_attn_2_available

import phase2_student.data.online as online_data
import phase2_student.training.train as training
from benchmarks.gpu.board import Figures, free_memory
from benchmarks.gpu.models import outlier_columns
from benchmarks.gpu.setting import Setting
from benchmarks.timed_calls import timed_calls
from firstsight.prompting import Encoded, collate
from firstsight.recipe import Recipe
from phase1_teacher.forward.exact_states import bits, head_content
from phase1_teacher.planning.job import DumpJob, prepare_dump
from phase2_student.data.source import SampleDataset
from phase2_student.planning.plan import plan_training
from phase2_student.training.arguments import training_arguments
from phase2_student.training.prepare import prepare
from storage.format.v2.layout import ExactLayout
from storage.targets import ExactSample, ExactTargets, SampleTargets, Targets

# P answer positions of a sample, K stored entries, n node temperatures

STOCK = "cross-entropy, stock Trainer, fp32 masters"
CACHED = "cached, fp32 masters"
ONLINE = "online, int8 teacher, fp32 masters"
CACHED_KAHAN = "cached, bf16 Kahan"
ONLINE_KAHAN = "online, int8 teacher, bf16 Kahan"
EXACT = "exact targets, fp32 masters"
EXACT_KAHAN = "exact targets, bf16 Kahan"
FLASH = "cached, bf16 Kahan, padding-free flash attention"
_KAHAN = "student.precision=bf16_kahan"


_CACHED = ("data.train=step.jsonl", "cache.path=step.zarr")
"""Changes that the recipes of distillation have in common."""
_EXACT = ("cache.path=step-exact.zarr", "cache.targets=exact")
"""Further changes for exact targets."""


class InMemory(Dataset[Any]):
    """Items that are made once and kept.

    Args:
        data: makes the items.
    """

    def __init__(self, data: SampleDataset) -> None:
        self.samples, self.skipped, self.lengths = data.samples, data.skipped, data.lengths
        self._items = [data[index] for index in range(len(data))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


class StepTimes(TrainerCallback):
    """Records the wall clock at the end of every step, when the device is done."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.ends: list[float] = []

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Record one more."""
        self.setting.synchronize()
        self.ends.append(time.perf_counter())


def run(setting: Setting) -> None:
    """The rows of this part."""
    measure = setting.board.measure
    recipe = setting.recipe()
    batch = int(recipe.training["per_device_train_batch_size"]) * int(recipe.training["gradient_accumulation_steps"])
    encoded = setting.encoded(batch)
    measure("step", STOCK, about=25, work=partial(_stock_step, setting, encoded))
    _short_file(setting, batch)
    measure("step", "cache of made-up targets", about=8, work=partial(_made_up_cache, setting))
    measure("step", CACHED, about=20, work=partial(_step, setting, CACHED))
    measure("step", "exact cache of made-up states", about=20, work=partial(_made_up_exact, setting))
    measure("step", EXACT, about=25, work=partial(_step, setting, EXACT, *_EXACT))
    measure("step", ONLINE, about=40, work=partial(_step, setting, ONLINE, online=True))
    measure("step", "outliers of the int8 teacher", about=5, work=partial(_outliers, setting, encoded[:2]))
    if not setting.on_gpu and version("bitsandbytes").startswith("0.49."):
        for name in (CACHED_KAHAN, EXACT_KAHAN, FLASH, ONLINE_KAHAN):
            setting.board.skip("step", name, "bitsandbytes 0.49 has 8-bit AdamW only on a GPU")
        return
    measure("step", CACHED_KAHAN, about=20, work=partial(_step, setting, CACHED_KAHAN, _KAHAN))
    measure("step", EXACT_KAHAN, about=25, work=partial(_step, setting, EXACT_KAHAN, _KAHAN, *_EXACT))
    flash = ("student.attn_implementation=flash_attention_2", "student.padding_free=true")
    if setting.on_gpu and is_flash_attn_2_available():
        measure("step", FLASH, about=20, work=partial(_step, setting, FLASH, _KAHAN, *flash))
    else:
        setting.board.skip("step", FLASH, "flash-attn is not installed")
    measure("step", ONLINE_KAHAN, about=40, work=partial(_step, setting, ONLINE_KAHAN, _KAHAN, online=True))


def _recipe(setting: Setting, name: str, *changes: str) -> Recipe:
    """The reference recipe for a few steps, each logged, without saving and validation."""
    recipe = setting.recipe(*changes)
    settings = recipe.training | {
        "max_steps": 1 + setting.sizes.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 10**6,  # never
        "report_to": "none",
        "dataloader_num_workers": 0,  # the items are in memory
        "output_dir": str(setting.directory / "runs" / name),
    }
    if not setting.on_gpu:
        settings["use_cpu"] = True
    return recipe.model_copy(update={"training": settings})


def _step(setting: Setting, name: str, *changes: str, online: bool = False) -> Figures:
    """Train for a few steps as `fs-student train` does, without reading and saving."""
    plan = prepare(_recipe(setting, name, *_CACHED, *changes), online=online, progress=False)
    plan = replace(plan, train=InMemory(plan.train))
    if online:
        setting.model("teacher-int8")
    free_memory()
    others = 0 if online else _allocated(setting)

    def make_student(_directory: Path, section: Any, *, dtype: torch.dtype) -> Any:
        return setting.student(dtype, section.attn_implementation)

    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with (
        patch.object(training, "load_student", make_student),
        patch.object(training, "save_student", _save_nothing),
        patch.object(online_data, "load_teacher", lambda *_: setting.model("teacher-int8")),
        timed_calls(training, "_self_check", setting.synchronize) as checks,
    ):
        training.train(plan)
    # a step is an epoch here: the file has the samples of one
    history = json.loads((plan.recipe.output_dir / "training_history.json").read_text(encoding="utf-8"))
    figures = _speed(setting, [row["seconds"] for row in history[1:]], plan.train.lengths(), others)
    if not online:
        figures["planned GB"] = _planned(plan.recipe) / 1e9
    figures["self-check, s"] = sum(checks)
    return figures | {name: history[-1]["train"][name] for name in ("loss", "kd", "ce")}


def _stock_step(setting: Setting, encoded: list[Encoded]) -> Figures:
    """The same steps with the stock `transformers.Trainer`, on labels alone."""
    recipe = _recipe(setting, "stock")
    arguments = training_arguments(
        recipe.model_copy(update={"training": recipe.training | {"train_sampling_strategy": "random"}}), progress=False
    )
    free_memory()
    others = _allocated(setting)
    times = StepTimes(setting)
    arguments.eval_strategy = "no"  # the stock trainer has no validation set here
    trainer = Trainer(
        model=setting.student(torch.float32),
        args=arguments,
        train_dataset=encoded,
        eval_dataset=encoded,  # required; no step validates
        data_collator=_labelled(setting.pair.student.pad_id),
        callbacks=[times],
    )
    trainer.remove_callback(PrinterCallback)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    result = trainer.train()
    seconds = [end - begin for begin, end in zip(times.ends, times.ends[1:], strict=False)]
    figures = _speed(setting, seconds, [len(each.input_ids) for each in encoded], others)
    # a reference cycle would keep the optimiser's state until after the next model is made
    trainer.optimizer = trainer.model = trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    return figures | {"loss": result.training_loss}


def _speed(setting: Setting, seconds: Sequence[float], lengths: Sequence[int], others: int) -> Figures:
    """Median step, and the peak since its last reset, without the bytes of other models."""
    step = statistics.median(seconds)
    figures: Figures = {"s per step": step, "samples/s": len(lengths) / step, "tokens/s": sum(lengths) / step}
    if setting.on_gpu:
        figures["peak GB"] = (torch.cuda.max_memory_allocated() - others) / 1e9
    return figures


def _allocated(setting: Setting) -> int:
    return torch.cuda.memory_allocated() if setting.on_gpu else 0


def _save_nothing(*_: Any) -> None:
    """Replaces `save_student`, which would write 4.4 GB to a disk that is not measured."""


def _planned(recipe: Recipe) -> float:
    """Bytes that `fs-student plan` estimates."""
    plan = plan_training(recipe, progress=False)
    wanted = (plan.mode, plan.gradient_checkpointing)
    return next(way.total for way in plan.footprints if (way.mode, way.gradient_checkpointing) == wanted)


def _outliers(setting: Setting, encoded: Sequence[Encoded]) -> Figures:
    inputs = setting.to_device(collate(encoded, setting.pair.teacher.pad_id))
    return outlier_columns(setting.model("teacher-int8"), inputs)


def _short_file(setting: Setting, samples: int) -> None:
    """Write the training file of the steps: the first samples."""
    recipe = setting.recipe(*_CACHED)
    kept = (recipe.data_root / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:samples]
    (short,) = recipe.source("train").files
    assert isinstance(short, Path)
    short.write_text("".join(kept), encoding="utf-8")


def _made_up_cache(setting: Setting) -> Figures:
    """Write the cache that the steps train on; no teacher makes it, so the cached steps run even if the teacher fails."""
    job = prepare_dump(setting.recipe(*_CACHED), progress=False)
    return _written(job, partial(made_up_targets, job))


def _made_up_exact(setting: Setting) -> Figures:
    """Write an exact cache in the same way: random states, and a random head of the teacher's size."""
    job = prepare_dump(setting.recipe(*_CACHED, *_EXACT), progress=False)
    layout = job.writer.version.layout
    assert isinstance(layout, ExactLayout)
    options: dict[str, Any] = {"dtype": getattr(torch, layout.head_dtype), "device": setting.device}
    head = SimpleNamespace(weight=torch.randn((layout.head_rows, layout.hidden_size), **options) * 0.02)
    job.writer.write_head(head_content(head, job.pair.answers.teacher, layout))

    def made_up_states(key: str) -> ExactSample:
        ids_P = np.array(job.pair.student.answer_ids(job.samples[key].answer or ""), dtype=np.uint32)
        states_PD = torch.randn((len(ids_P), layout.hidden_size), dtype=getattr(torch, layout.state_dtype))
        return ExactSample(key=key, hard=True, targets=ExactTargets(target_ids=ids_P, states=bits(states_PD)))

    return _written(job, made_up_states)


def _written(job: DumpJob, make: Callable[[str], SampleTargets | ExactSample]) -> Figures:
    """Commit every unit of a cache."""
    positions = 0
    for unit in job.pending:
        with job.writer.unit(unit) as out:
            for key in unit.keys:
                sample = make(key)
                positions += len(sample.targets)
                out.append(sample)
    return {"samples": len(job.samples), "positions": positions}


def made_up_targets(job: DumpJob, key: str) -> SampleTargets:
    """Targets that decay like a language model's, the answer's own token first."""
    shared_S, layout = job.pair.alignment.shared.nonzero()[0], job.writer.layout
    target_ids_P = np.array(job.pair.student.answer_ids(job.samples[key].answer or ""))
    P, K, S = len(target_ids_P), layout.top_k, len(shared_S)
    places_PK = np.searchsorted(shared_S, target_ids_P)[:, None] + np.arange(K) * (S // K)
    decay_O = np.append(-1.2 * np.log(np.arange(1, K + 1)), -3.0)
    log_O = decay_O - np.logaddexp.reduce(decay_O)
    each = log_O[K] - np.log(S - K)  # the tail is flat
    tail_n = np.log(S - K) + each / np.array(layout.temperatures)
    targets = Targets(
        ids=shared_S[places_PK % S].astype(np.uint32),
        logprobs=np.tile(log_O[:K], (P, 1)).astype(np.float32),
        tail=np.tile(tail_n, (P, 1)).astype(np.float32),
        target_ids=target_ids_P.astype(np.uint32),
        target_logprobs=np.full(P, log_O[0], dtype=np.float32),
        soft=np.ones(P, dtype=np.bool_),
    )
    return SampleTargets(key=key, hard=True, targets=targets)


def _labelled(pad_id: int) -> Callable[[Sequence[Encoded]], dict[str, Tensor]]:
    """Batches as plain fine-tuning takes them: labels at the answers."""

    def collator(batch: Sequence[Encoded]) -> dict[str, Tensor]:
        inputs = collate(batch, pad_id)
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, each in enumerate(batch):
            labels[row, each.answer_columns + 1] = each.target_ids
        return inputs | {"labels": labels}

    return collator
