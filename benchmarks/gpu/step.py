"""Part (b): an optimiser step of the reference recipe: plain fine-tuning, on a cache, with the int8 teacher in memory.

Micro-batches of 2 samples of about 1,300 tokens, 4 to a step, gradient checkpointing, bf16 compute. The samples are encoded
before the clock starts, so what is timed is the trainer and the device; `benchmarks/gpu/dump.py` times the pictures.

Reckoned for an H100: `fs-student plan` gives the cached step 42.7 GB with float32 masters and 22.6 GB with Kahan's remainder; it
is the column `planned GB`. Online, the int8 teacher adds 9.4 GB, its float32 head 2.2 and a forward pass 3; the plain step's
logits of a micro-batch are 5 GB. A step is 0.45 PFLOP for the student and 0.22 for the teacher: 1 to 3 s. Five rows of 4 steps and
their models: 60 s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu.board import Figures, free_memory
from benchmarks.gpu.models import outlier_columns
from benchmarks.gpu.setting import Setting
from firstsight.models.loading import load_config
from firstsight.models.teacher_head import TeacherHead
from firstsight.prompting import Encoded, collate
from firstsight.recipe import Recipe
from phase2_student.data.dataset import Collator, Item
from phase2_student.data.online_data import OnlineCollator, OnlineItem
from phase2_student.planning.footprint import footprint, student_shape
from phase2_student.training.arguments import training_arguments
from phase2_student.training.online import OnlineTeacher, OnlineTrainer
from phase2_student.training.student import LossSettings, with_distillation_forward
from phase2_student.training.trainer import DistillationTrainer
from phase2_student.training.weights import optimizer_class, weights_dtype

# P answer positions of a sample, K stored entries

STOCK = "cross-entropy, stock Trainer, fp32 masters"
CACHED = "cached, fp32 masters"
ONLINE = "online, int8 teacher, fp32 masters"
CACHED_KAHAN = "cached, bf16 Kahan"
ONLINE_KAHAN = "online, int8 teacher, bf16 Kahan"
FLASH = "cached, bf16 Kahan, padding-free flash attention"
_KAHAN = "student.precision=bf16_kahan"


class Listed(Dataset[Any]):
    """Items that are in memory already."""

    def __init__(self, items: Sequence[Any], lengths: Sequence[int]) -> None:
        self.items = items
        self._lengths = list(lengths)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def lengths(self) -> list[int]:
        """Tokens of each."""
        return self._lengths


class StepTimes(TrainerCallback):
    """The wall clock at the end of every step, when the device is done."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more."""
        self.setting.synchronize()
        self.ends.append(time.perf_counter())


def run(setting: Setting) -> None:
    """The rows of this part."""
    measure = setting.board.measure
    recipe = setting.recipe()
    batch = int(recipe.training["per_device_train_batch_size"]) * int(recipe.training["gradient_accumulation_steps"])
    encoded = setting.encoded(batch)
    measure("step", STOCK, about=25, work=lambda: _step(setting, encoded, stock=True))
    measure("step", CACHED, about=20, work=lambda: _step(setting, encoded))
    measure("step", ONLINE, about=35, work=lambda: _step(setting, encoded, online=True))
    inputs = setting.to_device(collate(encoded[:2], setting.pair.teacher.pad_id))
    measure(
        "step",
        "outliers of the int8 teacher",
        about=5,
        work=lambda: outlier_columns(setting.model("teacher-int8"), inputs),
    )
    if not setting.on_gpu and version("bitsandbytes").startswith("0.49."):
        for name in (CACHED_KAHAN, FLASH, ONLINE_KAHAN):
            setting.board.skip("step", name, "bitsandbytes 0.49 has 8-bit AdamW on a GPU alone")
        return
    measure("step", CACHED_KAHAN, about=20, work=lambda: _step(setting, encoded, _KAHAN))
    flash = ("student.attn_implementation=flash_attention_2", "student.padding_free=true")
    if setting.on_gpu and is_flash_attn_2_available():
        measure("step", FLASH, about=20, work=lambda: _step(setting, encoded, _KAHAN, *flash))
    else:
        setting.board.skip("step", FLASH, "flash-attn is not installed")
    measure("step", ONLINE_KAHAN, about=35, work=lambda: _step(setting, encoded, _KAHAN, online=True))


def _step(
    setting: Setting, encoded: list[Encoded], *changes: str, stock: bool = False, online: bool = False
) -> Figures:
    """Trains for a few steps as `fs-student train` does, less reading and saving."""
    steps = 1 + setting.sizes.steps
    recipe = setting.recipe(*changes)
    training = recipe.training | {
        "max_steps": steps,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,  # the items are in memory
        "output_dir": str(setting.directory / "run"),
    }
    if stock:
        training["train_sampling_strategy"] = "random"
    if not setting.on_gpu:
        training["use_cpu"] = True
    recipe = recipe.model_copy(update={"training": training})
    arguments = training_arguments(recipe, progress=False)
    teacher = _online_teacher(setting) if online else None
    free_memory()
    others = torch.cuda.memory_allocated() if setting.on_gpu and not online else 0
    model = setting.student(weights_dtype(recipe.student), recipe.student.attn_implementation)
    lengths = [len(each.input_ids) for each in encoded]
    pad_id = setting.pair.student.pad_id
    times = StepTimes(setting)
    options: dict[str, Any] = {
        "args": arguments,
        "optimizer_cls_and_kwargs": optimizer_class(recipe.student, arguments),
        "callbacks": [times],
    }
    if stock:
        trainer = Trainer(
            model=model, train_dataset=Listed(encoded, lengths), data_collator=_labelled(pad_id), **options
        )
    else:
        settings = LossSettings(
            temperature=recipe.loss.temperature,
            alpha=recipe.loss.alpha,
            tail=recipe.loss.tail,
            unshared_ids=torch.from_numpy((~setting.pair.alignment.shared).nonzero()[0]),
            teacher_head=None if teacher is None else teacher.head,
        )
        options["model"] = with_distillation_forward(model, settings, padding_free=recipe.student.padding_free)
        if teacher is None:
            items: list[Any] = [stored_item(each, setting) for each in encoded]
            trainer = DistillationTrainer(
                train_dataset=Listed(items, lengths), data_collator=Collator(pad_id), **options
            )
        else:
            items = [OnlineItem(student=each, teacher=each, rows=torch.arange(each.positions)) for each in encoded]
            trainer = OnlineTrainer(
                train_dataset=Listed(items, lengths),
                data_collator=OnlineCollator(pad_id, setting.pair.teacher.pad_id),
                teacher=teacher,
                **options,
            )
    trainer.remove_callback(PrinterCallback)
    free_memory()
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    result = trainer.train()
    seconds = [end - begin for begin, end in zip(times.ends, times.ends[1:], strict=False)]
    figures: Figures = {
        "s per step": statistics.median(seconds),
        "samples/s": len(encoded) / statistics.median(seconds),
        "tokens/s": sum(lengths) / statistics.median(seconds),
    }
    if setting.on_gpu:
        figures["peak GB"] = (torch.cuda.max_memory_allocated() - others) / 1e9
        if not stock and not online:
            figures["planned GB"] = _planned(setting, recipe, encoded) / 1e9
    figures["loss"] = result.training_loss
    # what holds the optimiser's state in a circle would keep it until after the next model is made
    trainer.optimizer = trainer.model = trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    return figures


def _planned(setting: Setting, recipe: Recipe, encoded: Sequence[Encoded]) -> float:
    """Bytes by `fs-student plan`'s own reckoning."""
    size = int(recipe.training["per_device_train_batch_size"])
    pixels = [len(each.pixel_values) for each in encoded if each.pixel_values is not None]
    shape = student_shape(load_config(setting.directory / "student", recipe.student), recipe.student, wide=2)
    found = footprint(
        shape,
        recipe.student.precision,
        tokens=size * max(len(each.input_ids) for each in encoded),
        patches=size * max(pixels),
        gradient_checkpointing=True,
    )
    return found.total


def stored_item(encoded: Encoded, setting: Setting) -> Item:
    """Targets that decay like a language model's, the answer's own token first, in the shapes that a cache gives back."""
    P, K = encoded.positions, setting.sizes.top_k
    shared = torch.from_numpy(setting.pair.alignment.shared.nonzero()[0])
    places_PK = torch.searchsorted(shared, encoded.target_ids)[:, None] + torch.arange(K) * (len(shared) // K)
    decay_K = -1.2 * torch.arange(1, K + 1).float().log()
    log_N = torch.cat([decay_K, torch.tensor([-3.0])]).log_softmax(dim=0)
    return Item(
        encoded=encoded,
        ids=shared[places_PK % len(shared)],
        log_p=log_N[:K].expand(P, K).clone(),
        log_r=log_N[K].expand(P).clone(),
        soft=torch.ones(P, dtype=torch.bool),
        hard=True,
    )


def _labelled(pad_id: int) -> Callable[[Sequence[Encoded]], dict[str, Tensor]]:
    """Batches as plain fine-tuning takes them: labels at the answers."""

    def collator(batch: Sequence[Encoded]) -> dict[str, Tensor]:
        inputs = collate(batch, pad_id)
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, each in enumerate(batch):
            labels[row, each.prompt_length : len(each.input_ids)] = each.target_ids
        return inputs | {"labels": labels}

    return collator


def _online_teacher(setting: Setting) -> OnlineTeacher:
    teacher = OnlineTeacher.__new__(OnlineTeacher)  # its model is in memory, so there is nothing to load
    teacher.model = setting.model("teacher-int8")
    teacher.head = TeacherHead(teacher.model.get_output_embeddings().weight, None, setting.pair.alignment)
    return teacher
