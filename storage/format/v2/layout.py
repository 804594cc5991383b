"""What the arrays of a cache of version 2 depend on: the fields of its specification that storage reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from storage.errors import InvalidSpec
from storage.format.head_table import BITS
from storage.format.layout import MAX_VOCABULARY, Layout, layout_of, whole

MAX_HIDDEN_SIZE = 2**16
MAX_TAIL_RANK = 1024
STATE_CHUNK = 64
"""Positions in a chunk of the states."""


@dataclass(frozen=True, kw_only=True)
class ExactLayout:
    """The fields of the specification of a cache of kind exact that its arrays depend on."""

    hidden_size: int
    """D, numbers in a hidden state."""
    state_dtype: str
    """bfloat16, float16 or float32."""
    head_rows: int
    """H, rows of the teacher's head; every target id is smaller."""
    head_dtype: str
    """The dtype of the head's weight and bias, as `state_dtype`."""
    head_bias: bool
    """Whether the head has a bias."""

    @property
    def bits(self) -> np.dtype[Any]:
        """The dtype that holds the bits of a number of a state."""
        return BITS[self.state_dtype]


def check_turns_field(spec: Mapping[str, Any]) -> None:
    """InvalidSpec where `turns` is present with an unknown value."""
    if "turns" in spec and spec["turns"] != "all":
        raise InvalidSpec(
            f"spec.turns: expected 'all', or no such field for the last turn alone, got {spec['turns']!r}"
        )


def top_k_layout(spec: Mapping[str, Any]) -> Layout:
    """The layout of kind top_k; InvalidSpec naming the field."""
    check_turns_field(spec)
    layout = layout_of(spec)
    if "tail_rank" not in spec:
        return layout
    hidden_size = whole(spec, "hidden_size", 1, MAX_HIDDEN_SIZE)
    rank = whole(spec, "tail_rank", 1, min(MAX_TAIL_RANK, hidden_size))
    return replace(layout, tail_rank=rank, hidden_size=hidden_size)


def exact_layout(spec: Mapping[str, Any]) -> ExactLayout:
    """The layout of kind exact; InvalidSpec naming the field."""
    check_turns_field(spec)
    head = spec.get("head")
    if not isinstance(head, dict) or set(head) != {"rows", "dtype", "bias"} or type(head["bias"]) is not bool:
        raise InvalidSpec(f"spec.head: expected rows, dtype and bias (true or false), got {head!r}")
    for where, dtype in (("spec.state_dtype", spec.get("state_dtype")), ("spec.head.dtype", head["dtype"])):
        if not isinstance(dtype, str) or dtype not in BITS:
            raise InvalidSpec(f"{where}: expected one of {', '.join(BITS)}, got {dtype!r}")
    return ExactLayout(
        hidden_size=whole(spec, "hidden_size", 1, MAX_HIDDEN_SIZE),
        state_dtype=spec["state_dtype"],
        head_rows=whole(head, "rows", 1, MAX_VOCABULARY, "spec.head"),
        head_dtype=head["dtype"],
        head_bias=head["bias"],
    )
