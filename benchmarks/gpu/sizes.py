"""Two sizes of everything: the real size of the reference pair, and one that a CPU runs through in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.dump_setup import STUDENT_ROWS, ModelShape


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a run of all parts depends on."""

    teacher: ModelShape
    student: ModelShape
    whole_tokenizer: bool
    """Whether the tokenizer has Qwen2-VL's 151,657 tokens, not the miniature pair's."""
    picture: tuple[int, int]
    """Width and height of the image files."""
    max_pixels: int
    """The recipe's, for both models."""
    answer_tokens: int
    """Tokens of an answer, end of turn included."""
    top_k: int
    tail_rank: int
    loss_positions: int
    loss_chunks: tuple[int, ...]
    reference_positions: int
    """Positions that are compared in float64."""
    repeats: int
    """How often the loss is timed."""
    steps: int
    """Timed optimiser steps, after an untimed one."""
    dumps: tuple[tuple[int, int], ...]
    """Tokens of a forward pass, and how many passes a dump makes; the first is the recipe's own."""
    answers: int
    """Timed answers, after an untimed one."""
    new_tokens: int
    """Maximum tokens of an answer."""


FULL = Sizes(
    # Qwen2-VL-7B and Qwen2-VL-2B
    teacher=ModelShape(rows=152_064, hidden=3584, intermediate=18_944, layers=28, vision_width=1280, vision_depth=32),
    student=ModelShape(
        rows=STUDENT_ROWS, hidden=1536, intermediate=8960, layers=28, vision_width=1280, vision_depth=32, tied=True
    ),
    whole_tokenizer=True,
    picture=(1920, 1080),  # scaled down to 1,316 x 728 pixels: 1,222 visual tokens
    max_pixels=1_003_520,
    answer_tokens=40,
    top_k=64,
    tail_rank=64,
    loss_positions=2048,
    loss_chunks=(128, 256, 512, 1024, 2048),
    reference_positions=64,
    repeats=5,
    steps=3,
    dumps=((16_384, 4), (65_536, 2), (8192, 4), (32_768, 2)),
    answers=5,
    new_tokens=40,
)

TINY = Sizes(
    teacher=ModelShape(rows=1280, hidden=256, intermediate=256, layers=2, vision_width=320, vision_depth=1),
    student=ModelShape(rows=1216, hidden=128, intermediate=128, layers=2, vision_width=320, vision_depth=1, tied=True),
    whole_tokenizer=False,
    picture=(160, 120),
    max_pixels=112 * 112,
    answer_tokens=8,
    top_k=16,
    tail_rank=8,
    loss_positions=64,
    loss_chunks=(16, 64),
    reference_positions=16,
    repeats=2,
    steps=1,
    dumps=((512, 2), (256, 2)),
    answers=1,
    new_tokens=4,
)
