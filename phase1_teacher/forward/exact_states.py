"""Exact targets: the states that the teacher's head sees, in the bits that it computed, and the head itself as a cache stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstsight.answer_alignment import TeacherTokens
from firstsight.errors import ModelError
from phase1_teacher.forward.soft_targets import TopKHead, TopKTargets, host_copy
from storage.format.v2.layout import ExactLayout
from storage.head.content import HeadContent, pack_tokens

# N answer positions, D hidden size, V rows of the head, m measured positions

_BITS = {2: torch.uint16, 4: torch.uint32}
"""Bytes of a number -> the dtype of its bits."""


@dataclass(frozen=True, kw_only=True)
class ExactStates:
    """The states of N answer positions."""

    states_ND: Tensor
    """As the backbone gives them: no cast."""
    finite_N: Tensor
    """bool: all numbers are finite."""
    measured: TopKTargets
    """What a top_k cache for a student of the same vocabulary would hold of the m measured positions."""

    def __len__(self) -> int:
        return len(self.states_ND)

    def to_host(self) -> ExactStates:
        """A copy in host memory; from a GPU it is under way when this returns: wait for an event recorded after it."""
        return ExactStates(
            states_ND=host_copy(self.states_ND), finite_N=host_copy(self.finite_N), measured=self.measured.to_host()
        )


def exact_states(
    states_ND: Tensor, target_ids_N: Tensor, measured_m: Tensor, head: TopKHead, layout: ExactLayout
) -> ExactStates:
    """The states of N answer positions as they are, on the device of the head.

    Args:
        states_ND: the teacher's hidden states.
        target_ids_N: int64, teacher ids of the answer's tokens.
        measured_m: int64, positions that the fidelity report is measured on.
        head: for the teacher's own vocabulary.
        layout: of the cache.

    Raises:
        ModelError: states of another type or width than the cache is for.
    """
    check_type("states", states_ND, layout.state_dtype, layout.hidden_size)
    chosen = measured_m.to(states_ND.device)
    return ExactStates(
        states_ND=states_ND,
        finite_N=states_ND.isfinite().all(dim=1),
        measured=head(states_ND[chosen], target_ids_N[chosen.to(target_ids_N.device)], torch.arange(len(chosen))),
    )


def head_content(head: Any, tokens: TeacherTokens, layout: ExactLayout) -> HeadContent:
    """The head of a teacher as a cache stores it.

    Args:
        head: the module that makes logits of states: a linear layer.
        tokens: the teacher's.
        layout: of the cache.

    Raises:
        ModelError: a head of another type or shape than the cache is for.
    """
    check_type("head", head.weight, layout.head_dtype, layout.hidden_size)
    bias = getattr(head, "bias", None)
    if len(head.weight) != layout.head_rows or (bias is not None) != layout.head_bias:
        raise ModelError(
            f"teacher: its head has {len(head.weight):,} rows and {'a' if bias is not None else 'no'} bias, its configuration "
            f"says {layout.head_rows:,} rows and {'a' if layout.head_bias else 'no'} bias; the files do not belong together"
        )
    arrays = {"weight": bits(head.weight), **pack_tokens(tokens.stored(), layout.head_rows)}
    if bias is not None:
        check_type("bias of the head", bias, layout.head_dtype, layout.head_rows)
        arrays["bias"] = bits(bias)
    return HeadContent(arrays=arrays)


def check_type(name: str, tensor: Tensor, dtype: str, width: int) -> None:
    """Raise ModelError where a part of the teacher is not what the cache is for."""
    if tensor.dtype != getattr(torch, dtype) or tensor.shape[-1] != width:
        raise ModelError(
            f"teacher: its {name} come in {str(tensor.dtype).removeprefix('torch.')} with {tensor.shape[-1]:,} numbers, the "
            f"cache is for {dtype} with {width:,}: exact targets are kept in the bits that the teacher computes; set "
            "teacher.dtype to that type"
        )


def bits(tensor: Tensor) -> NDArray[Any]:
    """The bits of floating-point numbers, in host memory; a view where they are there."""
    host = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = host.view(_BITS[host.element_size()]).numpy()
    return np.ascontiguousarray(array)
