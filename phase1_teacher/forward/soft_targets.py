"""From the teacher's hidden states to soft targets: head in fp32, alignment, top-k, tails.

    head = TopKHead(head_weight, bias, alignment, top_k=64, temperatures=(1, 1.5, 2, 4))
    targets = head(states, target_ids)

For the logits z on the shared ids, v_i = z_i - logsumexp(z). What is kept: the k largest v_i, always with the answer's own
token, and for each node temperature T the log of the mass not kept, log sum exp(v_i / T). Mass on tokens that the student
does not have is dropped before top-k and counted.

It takes one pass over each chunk of positions and holds two buffers of [chunk, V] on a GPU, little more than one on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from firstsight.models.teacher_head import TeacherHead
from firstsight.vocabulary import VocabularyAlignment
from phase1_teacher.forward.fidelity import full_moments, reported_temperatures
from phase1_teacher.forward.tail_basis import TailBasis, shape_kl

# N answer positions, n of one chunk, m measured ones, t reported temperatures, J node temperatures, K stored entries,
# D hidden size, V rows of the head, S shared ids

_CPU_ROWS = 8  # rows that go through all steps together: 5 MB, so that later steps find them in the processor's cache
_BLOCK = 64  # columns whose maximum is taken first: the k largest lie in the k blocks with the largest maxima


@dataclass(frozen=True, kw_only=True)
class TopKTargets:
    """Soft targets of N answer positions."""

    ids_NK: Tensor
    """int64, student ids, by descending log-probability."""
    logprobs_NK: Tensor
    """float32, nats, at T = 1 over the shared ids."""
    tail_NJ: Tensor
    """float32: log sum of exp(v / T) over the ids not stored; -inf if all are stored."""
    target_logprobs_N: Tensor
    """float32: log-probability of the answer's own token."""
    dropped_N: Tensor
    """float32: probability of the tokens that the student does not have."""
    finite_N: Tensor
    """bool: all logits were finite."""
    log_normaliser_mt: Tensor
    """float32: logsumexp(v / T) of `fidelity.full_moments`, at the measured positions."""
    negentropy_mt: Tensor
    """float32: sum p log p of `fidelity.full_moments`, in nats, at the same positions."""
    coefficients_Nr: Tensor
    """float32: coordinates of the states on the directions of the cache's tail; r = 0 if it has none."""
    shape_kl_mt: Tensor
    """float32: `tail_basis.shape_kl` at the measured positions; t = 0 if the tail has no shape."""

    def to_host(self) -> TopKTargets:
        """A copy in host memory. From a GPU the copy still runs when this returns: wait for an event recorded after it."""
        return TopKTargets(**{f.name: host_copy(getattr(self, f.name)) for f in fields(self)})


def host_copy(tensor: Tensor) -> Tensor:
    """The tensor in host memory; from a GPU through pinned memory, without waiting for it."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class TopKHead(TeacherHead):
    """The teacher's head, which turns states into top-k soft targets, `chunk` positions at a time.

    Args:
        head_VD: the teacher's head, as `TeacherHead` takes it.
        bias_V: bias of the head, or None.
        alignment: teacher ids to student ids.
        top_k: entries to store; at most the number of shared ids.
        temperatures: node temperatures of the tail.
        reported: temperatures at which the moments of measured positions are computed; None: those of the report.
        chunk: positions projected at once.
    """

    tail: TailBasis | None = None
    """The directions of a cache with a tail rank; None until they are known."""

    def __init__(
        self,
        head_VD: Tensor,
        bias_V: Tensor | None,
        alignment: VocabularyAlignment,
        *,
        top_k: int,
        temperatures: Sequence[float],
        reported: Sequence[float] | None = None,
        chunk: int = 128,
    ) -> None:
        super().__init__(head_VD, bias_V, alignment)
        self.top_k = top_k
        self.temperatures = tuple(temperatures)
        self._chains = _chains_of_halves({1.0, *temperatures})  # the tail at 1 makes the normaliser
        self.reported = reported_temperatures(temperatures) if reported is None else tuple(reported)
        self.chunk = chunk
        student_ids_S = self.student_ids_S
        column = torch.full((len(alignment.teacher_of_student),), -1, device=self.device)
        column[student_ids_S] = torch.arange(len(student_ids_S), device=self.device)
        self._column_of_student = column
        alone = torch.from_numpy((alignment.student_of_teacher < 0) & alignment.teacher_tokens)
        self._alone_ids = alone.nonzero()[:, 0].to(self.device)

    @torch.inference_mode()
    def __call__(self, states_ND: Tensor, target_ids_N: Tensor, measured_m: Tensor | None = None) -> TopKTargets:
        """Targets of N answer positions, on the device of the head.

        Args:
            states_ND: the teacher's hidden states.
            target_ids_N: int64, student ids of the answer's tokens, all of them shared.
            measured_m: int64, positions whose full distribution is measured too; None: no position.
        """
        target_ids_N = target_ids_N.to(self.device)
        measured_m = torch.empty(0, dtype=torch.int64) if measured_m is None else measured_m
        rows = self.chunk if self.device.type == "cuda" else _CPU_ROWS
        log_normaliser_mt = torch.empty((len(measured_m), len(self.reported)), device=self.device)
        negentropy_mt = torch.empty_like(log_normaliser_mt)
        parts = []
        for start in range(0, max(1, len(states_ND)), self.chunk):
            logits_nV = self.logits(states_ND[start : start + self.chunk])
            for place, row in enumerate((measured_m - start).tolist()):
                if 0 <= row < len(logits_nV):  # one by one: each takes several times the vocabulary in memory
                    logprobs_1S = self.shared(logits_nV[row : row + 1]).log_softmax(dim=1)
                    log_normaliser_mt[place], negentropy_mt[place] = full_moments(logprobs_1S, self.reported)
            ids_n = target_ids_N[start : start + self.chunk]
            for row in range(0, max(1, len(ids_n)), rows):
                parts.append(self._targets(logits_nV[row : row + rows], ids_n[row : row + rows]))
            del logits_nV  # before the next chunk's are made
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        coefficients_Nr, shape_kl_mt = torch.empty((len(states_ND), 0), device=self.device), log_normaliser_mt[:, :0]
        if self.tail is not None:
            coefficients_Nr = self.tail.coefficients(states_ND)
            shape_kl_mt = self._shape_kl(self.tail, states_ND, joined["ids_NK"], measured_m)
        return TopKTargets(
            **joined,
            log_normaliser_mt=log_normaliser_mt,
            negentropy_mt=negentropy_mt,
            coefficients_Nr=coefficients_Nr,
            shape_kl_mt=shape_kl_mt,
        )

    def _shape_kl(self, tail: TailBasis, states_ND: Tensor, ids_NK: Tensor, measured_m: Tensor) -> Tensor:
        """[m, t], one position at a time, since each takes several times the vocabulary in memory."""
        kl_mt = torch.empty((len(measured_m), len(self.reported)), device=self.device)
        for place, row in enumerate(measured_m.tolist()):
            state_1D, ids_1K = states_ND[row : row + 1], ids_NK[row : row + 1]
            kl_mt[place] = shape_kl(
                tail, self.log_probabilities(state_1D), state_1D, self._column_of_student[ids_1K], self.reported
            )
        return kl_mt

    def _targets(self, logits_nV: Tensor, target_ids_n: Tensor) -> dict[str, Tensor]:
        """Targets of some rows of a chunk; overwrites their logits."""
        logits_nS = self.shared(logits_nV)
        count = logits_nS.shape[1]
        wanted = min(self.top_k + 1, count)  # one more: the largest of the tail
        top_nK, columns_nK = _largest(logits_nS, wanted)
        target_n1 = self._column_of_student[target_ids_n][:, None]
        target_z_n1 = logits_nS.gather(1, target_n1)
        next_n1 = top_nK[:, self.top_k :] if count > self.top_k else torch.full_like(target_z_n1, -torch.inf)
        top_nK, columns_nK = top_nK[:, : self.top_k].clone(), columns_nK[:, : self.top_k].clone()
        missing_n1 = (columns_nK != target_n1).all(dim=1, keepdim=True)
        next_n1 = torch.where(missing_n1, top_nK[:, -1:], next_n1)
        columns_nK[:, -1:] = torch.where(missing_n1, target_n1, columns_nK[:, -1:])
        top_nK[:, -1:] = torch.where(missing_n1, target_z_n1, top_nK[:, -1:])
        finite_n = logits_nS.amin(dim=1).isfinite()
        rest_nS = logits_nS.scatter_(1, columns_nK, -torch.inf)
        peak_n1 = next_n1.clamp(min=torch.finfo(torch.float32).min)  # an empty tail has none
        rest_nS.sub_(peak_n1)
        buffer_nS = torch.empty_like(rest_nS)
        tails = {}
        for chain in self._chains:
            torch.mul(rest_nS, 1 / chain[0], out=buffer_nS).exp_()
            for T in chain:
                if chain[0] != T:
                    buffer_nS.square_()
                tails[T] = buffer_nS.sum(dim=1, keepdim=True).log_()
        lse_n1 = torch.logaddexp(top_nK.logsumexp(dim=1, keepdim=True), tails[1.0] + peak_n1)
        finite_n &= lse_n1[:, 0].isfinite()
        if len(self._alone_ids):
            dropped_n = torch.sigmoid(logits_nV[:, self._alone_ids].logsumexp(dim=1) - lse_n1[:, 0])
        else:
            dropped_n = torch.zeros_like(lse_n1[:, 0])
        tail_nJ = torch.cat([tails[T] + (peak_n1 - lse_n1) / T for T in self.temperatures], dim=1)
        return {
            "ids_NK": self.student_ids_S[columns_nK],
            "logprobs_NK": top_nK.sub_(lse_n1),
            "tail_NJ": tail_nJ,
            "target_logprobs_N": (target_z_n1 - lse_n1)[:, 0],
            "dropped_N": dropped_n,
            "finite_N": finite_n,
        }


def _chains_of_halves(temperatures: Iterable[float]) -> list[list[float]]:
    """The temperatures in chains, each half the one before: squaring exp(v / 2T) is cheaper than computing exp(v / T)."""
    chains: list[list[float]] = []
    for T in sorted(temperatures, reverse=True):
        chain = next((chain for chain in chains if chain[-1] == 2 * T), None)
        if chain is None:
            chains.append([T])
        else:
            chain.append(T)
    return chains


def _largest(values_nS: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`values_nS.topk(count)`; for a large vocabulary the maxima of blocks first show where to look."""
    blocks = values_nS.shape[1] // _BLOCK
    if blocks < 4 * count:
        found = values_nS.topk(count, dim=1)
        return found.values, found.indices
    whole = blocks * _BLOCK
    maxima_nb = values_nS[:, :whole].view(-1, blocks, _BLOCK).amax(dim=2)
    chosen = maxima_nb.topk(count, dim=1).indices
    inside = torch.arange(_BLOCK, device=values_nS.device)
    columns = (chosen[:, :, None] * _BLOCK + inside).flatten(1)
    rest = torch.arange(whole, values_nS.shape[1], device=values_nS.device).expand(len(values_nS), -1)
    columns = torch.cat([columns, rest], dim=1)
    found = values_nS.gather(1, columns).topk(count, dim=1)
    return found.values, columns.gather(1, found.indices)
