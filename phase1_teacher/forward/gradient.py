"""What a top_k cache would cost the student: how far the bucket's gradient is off, on a few positions of a dump.

    forward.watched                                      # during the dump: the teacher's logits of a few positions
    report = gradient_report(recipe, pair, watched, ...) # after it, when the teacher has left the memory: the student is loaded

The slope of T^2 KL in the student's logits is T (q - p) with the teacher's whole distribution. With stored entries and the mass
of the rest it is the same at a stored id, and T (q - r q / s) at another, r and s being the teacher's and the student's mass on
the ids not stored. Reported is the length of the difference over the length of the first, over all positions together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError, FirstSightError, ModelError
from firstsight.models.loading import backbone_states, default_device, load_student, resolve_directory
from firstsight.pair import Pair
from firstsight.prompting import collate
from firstsight.recipe import Recipe
from storage.wording import counted

# n positions, S shared ids, V rows of the teacher's head, K stored entries

POSITIONS = 32
"""At most so many are measured: each may take a forward pass of the student's base."""


@dataclass(frozen=True, kw_only=True)
class WatchedPosition:
    """One answer position of a dump."""

    sample: Sample
    teacher_ids: list[list[int]]
    """Each answer in the teacher's tokens."""
    place: int
    """The teacher's answer position."""
    logits_V: Tensor
    """float32, the teacher's, on the host."""


@dataclass(frozen=True, kw_only=True)
class GradientReport:
    """How far the gradient of a top_k cache is off for the recipe's student."""

    student: str
    positions: int
    errors: dict[float, float]
    """Temperature -> length of the gradient's error over that of the gradient."""
    seconds: float
    device: str
    problem: str = ""
    """Why nothing was measured; empty where it was."""


def gradient_report(
    recipe: Recipe, pair: Pair, watched: Sequence[WatchedPosition], *, top_k: int, temperatures: Sequence[float]
) -> GradientReport:
    """Load the student's base and compare; the teacher should have left the memory.

    A student whose weights are not there, or do not fit, is no error: the dump is done, and the report says why.

    Args:
        recipe: names the student.
        pair: of teacher and student.
        watched: positions of the dump.
        top_k: entries of the cache that is compared.
        temperatures: of the report.
    """
    begin, device, rows, problem = time.perf_counter(), default_device(), [], ""
    try:
        student = _Student(recipe, pair, device)
        rows = [row for each in watched if (row := student.row(each, top_k)) is not None]
    except (FirstSightError, torch.OutOfMemoryError) as error:
        problem = " ".join(str(error).split())[:300]
    if not rows:
        problem = problem or "no watched position has a counterpart in the student's tokens"
    errors = {}
    for T in temperatures if rows and not problem else ():
        squares = np.array([bucket_error(*row, temperature=T) for row in rows]).sum(axis=0)
        errors[T] = float(np.sqrt(squares[0] / max(squares[1], 1e-30)))
    return GradientReport(
        student=recipe.student.model,
        positions=len(rows),
        errors=errors,
        seconds=time.perf_counter() - begin,
        device=str(device),
        problem=problem,
    )


def bucket_error(teacher_S: Tensor, student_S: Tensor, stored_K: Tensor, *, temperature: float) -> tuple[float, float]:
    """Squares of the length of the bucket's error and of the whole gradient, in the logits, at one position.

    Args:
        teacher_S: logits.
        student_S: logits of the same ids.
        stored_K: int64, columns of the stored entries.
        temperature: T.
    """
    p_S, q_S = ((logits.double() / temperature).softmax(dim=0) for logits in (teacher_S, student_S))
    rest = torch.ones_like(p_S, dtype=torch.bool)
    rest[stored_K] = False
    if not rest.any():
        return 0.0, float((q_S - p_S).square().sum())
    r, s = p_S[rest].sum(), q_S[rest].sum()
    error = p_S[rest] - r * q_S[rest] / s.clamp(min=1e-300)
    return float(error.square().sum()), float((q_S - p_S).square().sum())


def gradient_lines(report: GradientReport, top_k: int) -> list[str]:
    """The report as lines of text."""
    if report.problem:
        return [f"The bucket's gradient error for {report.student} was not measured: {report.problem}"]
    each = ", ".join(f"{error:.1%} at T = {T:g}" for T, error in report.errors.items())
    return [
        f"Gradient of the {top_k} entries and a bucket against the whole distribution's, for {report.student} as it is: off by "
        f"{each} ({counted(report.positions, 'position')}, {report.seconds:.1f} s on {report.device})"
    ]


class _Student:
    """The student's base.

    Args:
        recipe: names it.
        pair: of teacher and student.
        device: for it.
    """

    def __init__(self, recipe: Recipe, pair: Pair, device: torch.device) -> None:
        directory = resolve_directory(recipe, recipe.student, weights=False)
        if not any(directory.glob("*.safetensors")):  # a report downloads none
            raise ModelError(f"its weights are not on this machine ({directory}); --student none leaves this out")
        self.pair = pair
        self.model = (
            load_student(directory, recipe.student, dtype=getattr(torch, recipe.student.dtype)).to(device).eval()
        )
        self.shared_S = np.flatnonzero(pair.alignment.shared)
        head, ids_S = self.model.get_output_embeddings(), torch.from_numpy(self.shared_S).to(device)
        self.head_SD = head.weight.detach()[ids_S].float()
        bias = getattr(head, "bias", None)
        self.bias_S = None if bias is None else bias.detach()[ids_S].float()

    @torch.inference_mode()
    def row(self, watched: WatchedPosition, top_k: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Logits of teacher and student over the shared ids, and the columns that would be stored; None: no such position."""
        pair, sample = self.pair, watched.sample
        try:
            turns = pair.student_turns(sample, watched.teacher_ids)
            places = np.flatnonzero(pair.answer_rows(sample, watched.teacher_ids, turns) == watched.place)[:1]
            encoded = pair.student.encode(sample, turns) if len(places) else None
        except (AlignmentError, DataError):
            return None  # the student has no such sample
        if encoded is None:
            return None
        inputs = {name: value.to(self.model.device) for name, value in collate([encoded], pair.student.pad_id).items()}
        column = encoded.answer_columns[torch.from_numpy(places)]
        state_1D = backbone_states(self.model, inputs, torch.zeros_like(column), column).float()
        student_S = torch.nn.functional.linear(state_1D, self.head_SD, self.bias_S)[0].cpu()
        teacher_S = watched.logits_V[torch.from_numpy(pair.alignment.teacher_of_student[self.shared_S])]
        own_1 = torch.from_numpy(np.searchsorted(self.shared_S, encoded.target_ids.numpy()[places]))
        stored_K = teacher_S.topk(min(top_k, len(teacher_S))).indices
        if not (stored_K == own_1).any():
            stored_K[-1:] = own_1
        return teacher_S, student_S, stored_K
