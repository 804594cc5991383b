"""Exact targets: the hidden states that the teacher's head reads, bit for bit, and the head in the form that a cache stores."""

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
    """In the backbone's own dtype: no cast."""
    finite_N: Tensor
    """bool: all numbers of the position are finite."""
    measured: TopKTargets
    """What a top_k cache for a student of the same vocabulary would hold for the m measured positions."""

    def __len__(self) -> int:
        return len(self.states_ND)

    def to_host(self) -> ExactStates:
        """A copy in host memory. From a GPU the copy still runs when this returns: wait for an event recorded after it."""
        return ExactStates(
            states_ND=host_copy(self.states_ND), finite_N=host_copy(self.finite_N), measured=self.measured.to_host()
        )


def exact_states(
    states_ND: Tensor, target_ids_N: Tensor, measured_m: Tensor, head: TopKHead, layout: ExactLayout
) -> ExactStates:
    """The unchanged states of N answer positions, on the device of the head.

    Args:
        states_ND: the teacher's hidden states.
        target_ids_N: int64, teacher ids of the answer's tokens.
        measured_m: int64, positions that the fidelity report measures.
        head: the head for the teacher's own vocabulary.
        layout: the cache's layout.

    Raises:
        ModelError: the states have another dtype or width than the cache expects.
    """
    check_type("states", states_ND, layout.state_dtype, layout.hidden_size)
    chosen = measured_m.to(states_ND.device)
    return ExactStates(
        states_ND=states_ND,
        finite_N=states_ND.isfinite().all(dim=1),
        measured=head(states_ND[chosen], target_ids_N[chosen.to(target_ids_N.device)], torch.arange(len(chosen))),
    )


def head_content(head: Any, tokens: TeacherTokens, layout: ExactLayout) -> HeadContent:
    """The head of a teacher in the form that a cache stores.

    Args:
        head: the module that makes logits of states: a linear layer.
        tokens: the teacher's tokens.
        layout: the cache's layout.

    Raises:
        ModelError: the head has another dtype or shape than the cache expects.
    """
    check_type("head", head.weight, layout.head_dtype, layout.hidden_size)
    bias = getattr(head, "bias", None)
    if len(head.weight) != layout.head_rows or (bias is not None) != layout.head_bias:
        raise ModelError(
            f"teacher: its configuration says {layout.head_rows:,} rows and {'a' if layout.head_bias else 'no'} bias, its head has "
            f"{len(head.weight):,} rows and {'a' if bias is not None else 'no'} bias; the files do not belong together"
        )
    arrays = {"weight": bits(head.weight), **pack_tokens(tokens.stored(), layout.head_rows)}
    if bias is not None:
        check_type("bias of the head", bias, layout.head_dtype, layout.head_rows)
        arrays["bias"] = bits(bias)
    return HeadContent(arrays=arrays)


def check_type(name: str, tensor: Tensor, dtype: str, width: int) -> None:
    """Raise ModelError if a tensor of the teacher has another dtype or width than the cache expects."""
    if tensor.dtype != getattr(torch, dtype) or tensor.shape[-1] != width:
        raise ModelError(
            f"teacher: {name}: expected {dtype} with {width:,} numbers, as in the cache, got "
            f"{str(tensor.dtype).removeprefix('torch.')} with {tensor.shape[-1]:,}: exact targets are stored bit for bit; set "
            f"teacher.dtype: {dtype}"
        )


def bits(tensor: Tensor) -> NDArray[Any]:
    """The bits of floating-point numbers, in host memory; a view if they are there already."""
    host = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = host.view(_BITS[host.element_size()]).numpy()
    return np.ascontiguousarray(array)
