"""Time and peak memory of the fused distillation loss against plain cross-entropy, forward and backward.

    python -m benchmarks.loss [--positions 2048 --hidden 1536 --vocabulary 151936 --top-k 64 --repeats 3 --threads 2]
    python -m benchmarks.loss --positions 512 --repeats 5 --divergences     # each against forward KL, on every kind of targets
    python -m benchmarks.loss --quick --divergences                         # only shows that it works; its figures mean nothing

Every measurement is a process of its own, so that each has its own peak, and the variants take turns, so that a machine that
slows down slows them all; processor time is printed next to wall-clock time. Memory is the peak of the resident set above the
inputs (states, head, targets). The medians are printed, and the ratios to plain cross-entropy (with --divergences: to forward KL
on the same targets) round by round: their median, smallest and largest.

The kinds of targets: `top_k`, stored entries and a bucket; `tail_rank`, stored entries and a tail with a shape; `exact`, the teacher's
states and head (--teacher-hidden), projected chunk by chunk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from firstsight.models.tail_shape import TailShape
from firstsight.models.teacher_head import SharedHead
from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import CoordinateTargets, LossTargets, ShapedTargets, StoredTargets, TeacherTargets

# N answer positions, K stored entries, D hidden size, V rows of the head

SMALL_CHUNK = 64
VARIANTS = ("cross-entropy", "unfused", "fused", "fused-small", "fused-hard", "fused-soft")
KINDS = ("top_k", "tail_rank", "exact")
BY_DIVERGENCE = tuple(f"{kind} {name}" for kind in KINDS for name in DIVERGENCES)
"""The fused loss by targets and divergence."""
_QUICK = {"N": 32, "D": 32, "V": 2000, "K": 16, "teacher_hidden": 48, "rank": 8, "repeats": 2}


def make_inputs(N: int, D: int, V: int, K: int) -> tuple[Tensor, Tensor, StoredTargets, Tensor]:
    """Random states [N, D], head [V, D], targets that decay like a language model's, and the ids not shared (0.2%)."""
    torch.manual_seed(0)
    states_ND = torch.randn(N, D).requires_grad_()
    head_VD = (torch.randn(V, D) * 0.02).requires_grad_()
    unshared = torch.arange(V - V // 500, V)
    ids_NK = torch.stack([torch.randperm(V - len(unshared))[:K] for _ in range(N)])
    log_NK1 = torch.cat([-1.2 * torch.arange(K).float().add(1).log().expand(N, K), torch.full((N, 1), -3.0)], dim=1)
    log_NK1 = log_NK1.log_softmax(dim=1)
    targets = StoredTargets(
        ids_NK=ids_NK,
        log_p_NK=log_NK1[:, :K],
        log_r_N=log_NK1[:, K],
        target_ids_N=ids_NK[:, 0].clone(),
        soft_N=torch.ones(N, dtype=torch.bool),
        hard_N=torch.ones(N, dtype=torch.bool),
    )
    return states_ND, head_VD, targets, unshared


def targets_of_kind(kind: str, stored: StoredTargets, S: int, teacher_hidden: int, rank: int, T: float) -> LossTargets:
    """The same positions with other targets: random, over the first S ids."""
    known = {name: getattr(stored, name) for name in ("target_ids_N", "soft_N", "hard_N")}
    N, shared_ids = len(stored.target_ids_N), torch.arange(S)
    if kind == "exact":
        head = SharedHead((torch.randn(S, teacher_hidden) * 0.05).bfloat16(), None, shared_ids)
        return TeacherTargets(states_ND=torch.randn(N, teacher_hidden).bfloat16(), head=head, temperature=T, **known)
    if kind == "tail_rank":
        shape = TailShape(image_Sr=torch.randn(S, rank), mean_S=torch.randn(S), student_ids_S=shared_ids)
        entries = {name: getattr(stored, name) for name in ("ids_NK", "log_p_NK", "log_r_N")}
        coordinates = CoordinateTargets(**known, **entries, coefficients_Nr=torch.randn(N, rank))
        return ShapedTargets.of(coordinates, shape, T)
    return stored


def unfused(states_ND: Tensor, head_VD: Tensor, targets: StoredTargets, unshared: Tensor, T: float = 2.0) -> Tensor:
    """The same loss from whole logits by autograd, without a loop over positions."""
    logits_NV = states_ND @ head_VD.T
    scaled_NV = (logits_NV / T).index_fill(1, unshared, -torch.inf)
    stored_NK = scaled_NV.gather(1, targets.ids_NK)
    rest_N = scaled_NV.scatter(1, targets.ids_NK, -torch.inf).logsumexp(dim=1)
    lse_N = torch.logaddexp(stored_NK.logsumexp(dim=1), rest_N)
    kd = (targets.log_p_NK.exp() * (targets.log_p_NK - stored_NK + lse_N[:, None])).sum()
    kd = kd + (targets.log_r_N.exp() * (targets.log_r_N - rest_N + lse_N)).sum()
    return 0.7 * T**2 * kd / len(states_ND) + 0.3 * cross_entropy(logits_NV, targets.target_ids_N)


def measure(
    variant: str, N: int, D: int, V: int, K: int, teacher_hidden: int, rank: int, threads: int
) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward in this process."""
    torch.set_num_threads(threads)
    states, head, targets, unshared = make_inputs(N, D, V, K)
    kind, _, name = variant.partition(" ")
    of_kind = targets_of_kind(kind, targets, V - len(unshared), teacher_hidden, rank, T=2.0)

    def fused(alpha: float, chunk: int | None = None, divergence: str = "forward_kl") -> Tensor:
        size = {} if chunk is None else {"chunk": chunk}
        return distillation_loss(
            states,
            head,
            of_kind,
            objective=Objective(temperature=2.0, alpha=alpha, divergence=DIVERGENCES[divergence]()),
            unshared_ids=unshared,
            num_items=N,
            **size,
        )[0]

    losses: dict[str, Callable[[], Tensor]] = {
        "cross-entropy": lambda: cross_entropy(states @ head.T, targets.target_ids_N),
        "unfused": lambda: unfused(states, head, targets, unshared),
        "fused": lambda: fused(0.7),
        "fused-small": lambda: fused(0.7, SMALL_CHUNK),
        "fused-hard": lambda: fused(0.0),
        "fused-soft": lambda: fused(1.0),
    }
    if name:
        losses[variant] = partial(fused, 0.7, divergence=name)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # threads and libraries are up
    with PeakMemory() as memory:
        begin, processor = time.perf_counter(), time.process_time()
        loss = losses[variant]()
        loss.backward()  # type: ignore[no-untyped-call]
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    return {"seconds": seconds, "processor": processor, "bytes": float(memory.peak_bytes or 0), "loss": loss.item()}


@click.command()
@click.option("--positions", "N", default=2048, show_default=True)
@click.option("--hidden", "D", default=1536, show_default=True)
@click.option("--vocabulary", "V", default=151_936, show_default=True)
@click.option("--top-k", "K", default=64, show_default=True)
@click.option(
    "--teacher-hidden", default=3584, show_default=True, help="Width of the teacher's states, for exact targets."
)
@click.option("--rank", default=64, show_default=True, help="Rank of the tail's shape.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(VARIANTS), help="Variants to run; default: all.")
@click.option("--divergences", is_flag=True, help="Measure every divergence instead of the variants.")
@click.option("--quick", is_flag=True, help="Tiny sizes: only shows that it works.")
@click.option("--one", hidden=True, type=click.Choice((*VARIANTS, *BY_DIVERGENCE)))
def main(
    N: int,
    D: int,
    V: int,
    K: int,
    teacher_hidden: int,
    rank: int,
    repeats: int,
    threads: int,
    only: tuple[str, ...],
    divergences: bool,
    quick: bool,
    one: str | None,
) -> None:
    """Time and peak memory of the loss against plain cross-entropy.

    Example: python -m benchmarks.loss --repeats 5
    """
    if one is not None:
        click.echo(json.dumps(measure(one, N, D, V, K, teacher_hidden, rank, threads)))
        return
    if quick:
        N, D, V, K, teacher_hidden, rank, repeats = _QUICK.values()
    if divergences and only:
        raise click.UsageError("--divergences measures all of them; omit --only")
    chosen = [name for name in VARIANTS if not only or name in only or name == "cross-entropy"]
    variants = list(BY_DIVERGENCE) if divergences else chosen
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    sizes = ["--positions", N, "--hidden", D, "--vocabulary", V, "--top-k", K, "--threads", threads]
    sizes += ["--teacher-hidden", teacher_hidden, "--rank", rank]
    for repeat in range(repeats):
        for name in variants if repeat % 2 == 0 else reversed(variants):
            command = [sys.executable, "-m", "benchmarks.loss", *map(str, sizes), "--one", name]
            runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    more = f", teacher D = {teacher_hidden:,}, rank {rank}" if divergences else ""
    click.echo(f"N = {N:,}, D = {D:,}, V = {V:,}, k = {K}{more}, fp32, {threads} threads, median of {repeats}")
    ratio = f"{'x (least to most)':>22}"
    click.echo(f"{'':22}{'s':>8}{ratio}{'cpu s':>8}{ratio}{'MB':>9}{ratio}")
    for name in variants:
        base = f"{name.partition(' ')[0]} forward_kl" if divergences else "cross-entropy"
        cells = [
            f"{_median(runs[name], 'seconds'):8.2f}{_ratio(runs[name], runs[base], 'seconds')}",
            f"{_median(runs[name], 'processor'):8.2f}{_ratio(runs[name], runs[base], 'processor')}",
            f"{_median(runs[name], 'bytes') / 1e6:9,.0f}{_ratio(runs[name], runs[base], 'bytes')}",
        ]
        click.echo(f"{name:22}" + "".join(cells))


def _median(rounds: Sequence[dict[str, float]], field: str) -> float:
    return statistics.median(each[field] for each in rounds)


def _ratio(rounds: Sequence[dict[str, float]], base: Sequence[dict[str, float]], field: str) -> str:
    """Ratios within each round: a machine that slows down slows both."""
    found = [one[field] / max(other[field], 1e-9) for one, other in zip(rounds, base, strict=True)]
    return f"{statistics.median(found):8.2f} ({min(found):.2f} to {max(found):.2f})"


if __name__ == "__main__":
    main()
