"""Time and peak memory of the fused distillation loss against plain cross-entropy, forward and backward.

    python -m benchmarks.loss [--positions 2048 --hidden 1536 --vocabulary 151936 --top-k 64 --repeats 3 --threads 2]
    python -m benchmarks.loss --positions 512 --divergences     # each beside forward KL, on both kinds of targets

Every measurement is a process of its own, so that peaks are honest, and the variants take turns, so that a machine that
slows down slows them all; processor time is printed beside the clock's. Memory is the peak of the resident set above the
inputs (states, head, targets). Printed are the medians, and their ratios to plain cross-entropy (with --divergences: to
forward KL on the same targets) of the same run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import FullTargets, StoredTargets

# N answer positions, K stored entries, D hidden size, V rows of the head

SMALL_CHUNK = 64
VARIANTS = ("cross-entropy", "unfused", "fused", "fused-small", "fused-hard", "fused-soft")
BY_DIVERGENCE = tuple(f"{targets} {name}" for targets in ("stored", "whole") for name in DIVERGENCES)
"""The fused loss by targets and divergence."""


def make_inputs(N: int, D: int, V: int, K: int) -> tuple[Tensor, Tensor, StoredTargets, Tensor]:
    """Random states [N, D], head [V, D], targets that decay like a language model's, and the ids not shared (0.2 %)."""
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


def whole(stored: StoredTargets, V: int, unshared: Tensor) -> FullTargets:
    """Whole distributions that decay like the stored entries, at every position in another order."""
    N, S = len(stored.target_ids_N), V - len(unshared)
    log_p_S = (-1.2 * torch.arange(S).float().add(1).log()).log_softmax(dim=0)
    return FullTargets(
        log_p_NS=torch.stack([log_p_S.roll(977 * n) for n in range(N)]),
        shared_ids_S=torch.arange(S),
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )


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


def measure(variant: str, N: int, D: int, V: int, K: int, threads: int) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward in this process."""
    torch.set_num_threads(threads)
    states, head, targets, unshared = make_inputs(N, D, V, K)

    by_kind: dict[str, StoredTargets | FullTargets] = {"stored": targets}
    if variant.startswith("whole"):
        by_kind["whole"] = whole(targets, V, unshared)

    def fused(alpha: float, chunk: int | None = None, kind: str = "stored", divergence: str = "forward_kl") -> Tensor:
        size = {} if chunk is None else {"chunk": chunk}
        return distillation_loss(
            states,
            head,
            by_kind[kind],
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
    for name in BY_DIVERGENCE:
        kind, _, divergence = name.partition(" ")
        losses[name] = partial(fused, 0.7, kind=kind, divergence=divergence)
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
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(VARIANTS), help="Variants to run; default: all.")
@click.option("--divergences", is_flag=True, help="Every divergence in place of the variants.")
@click.option("--one", hidden=True, type=click.Choice((*VARIANTS, *BY_DIVERGENCE)))
def main(
    N: int,
    D: int,
    V: int,
    K: int,
    repeats: int,
    threads: int,
    only: tuple[str, ...],
    divergences: bool,
    one: str | None,
) -> None:
    """Time and peak memory of the loss against plain cross-entropy.

    Example: python -m benchmarks.loss --repeats 5
    """
    if one is not None:
        click.echo(json.dumps(measure(one, N, D, V, K, threads)))
        return
    if divergences and only:
        raise click.UsageError("--divergences measures all of them; leave --only out")
    chosen = [name for name in VARIANTS if not only or name in only or name == "cross-entropy"]
    variants = list(BY_DIVERGENCE) if divergences else chosen
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    sizes = ["--positions", N, "--hidden", D, "--vocabulary", V, "--top-k", K, "--threads", threads]
    for repeat in range(repeats):
        for name in variants if repeat % 2 == 0 else reversed(variants):
            command = [sys.executable, "-m", "benchmarks.loss", *map(str, sizes), "--one", name]
            runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {
        name: {
            field: statistics.median(run[field] for run in runs[name]) for field in ("seconds", "processor", "bytes")
        }
        for name in variants
    }
    click.echo(f"N = {N:,}, D = {D:,}, V = {V:,}, k = {K}, fp32, {threads} threads, median of {repeats}")
    click.echo(f"{'':18}{'s':>8}{'x':>7}{'cpu s':>8}{'x':>7}{'MB':>9}{'x':>7}")
    for name, median in medians.items():
        base = medians[f"{name.partition(' ')[0]} forward_kl" if divergences else "cross-entropy"]
        click.echo(
            f"{name:18}{median['seconds']:8.2f}{median['seconds'] / base['seconds']:7.2f}"
            f"{median['processor']:8.2f}{median['processor'] / base['processor']:7.2f}"
            f"{median['bytes'] / 1e6:9,.0f}{median['bytes'] / base['bytes']:7.2f}"
        )


if __name__ == "__main__":
    main()
