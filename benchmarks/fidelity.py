"""What a cache keeps of its teacher, measured on students: trained on the cache and online, same seeds, side by side.

    python -m benchmarks.fidelity DIR [--seeds 3 --top-k 64 --top-k 16 --minutes 6]

Repeat the command until nothing is left to do: a finished run is not repeated, and no run is begun that would end after
`--minutes`. Then it reports full-vocabulary KL(teacher || student) on validation and exact answers of every
final student, the differences cached - online with their paired bootstrap intervals, and, on identical weights and
batches, the losses and gradients of both, with the share of the difference that the shape of the tail explains.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.pair import Deadline, place_pair
from firstsight.models.loading import backbone_states, load_student
from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.data.batch import Batch
from phase2_student.data.cached import CachedDataset, join_stored
from phase2_student.data.source import SampleDataset
from phase2_student.evaluation.metrics.intervals import paired_bootstrap
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import FullTargets, StoredTargets, TeacherTargets
from phase2_student.runs.files import write_json
from phase2_student.training.prepare import Plan, is_finished, prepare
from phase2_student.training.train import train
from storage.errors import CacheMissing
from storage.maintenance.status import cache_status

# N answer positions of a batch, K stored entries, S shared ids

BATCH = 32


class Measured:
    """Measures students against the teacher on the validation samples.

    Args:
        recipe: names the pair and the data.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.plan = prepare(recipe, online=True, progress=False)
        self.complete = self.plan.source.completion(torch.device("cpu"))
        self.unshared = torch.from_numpy((~self.plan.source.shared_mask()).nonzero()[0])

    def batches(self, data: SampleDataset, count: int | None = None) -> Iterator[tuple[range, Batch[TeacherTargets]]]:
        """Indices of the first `count` batches, and the batches with the teacher's states."""
        collate = self.plan.source.collator()
        for start in range(0, len(data) if count is None else count * BATCH, BATCH):
            indices = range(start, min(start + BATCH, len(data)))
            yield indices, self.complete(collate([data[index] for index in indices]))

    def student(self, directory: Path) -> Any:
        """A student in fp32."""
        return load_student(directory, self.recipe.student, dtype=torch.float32)

    @torch.no_grad()
    def validate(self, directory: Path) -> dict[str, list[float]]:
        """Per validation sample: KL(teacher || student) at T = 1 summed over its answer, the number of its positions, and whether
        every answer token is the most likely one, as greedy decoding needs to answer correctly.
        """
        model = self.student(directory).eval()
        head = model.get_output_embeddings().weight
        kl, positions, exact = [], [], []
        for _, batch in self.batches(self.plan.validation):
            rows, targets = batch.answer_rows, replace(batch.targets, temperature=1.0)
            own = backbone_states(model, batch.inputs, rows, batch.answer_columns)
            right = (own @ head.T).argmax(dim=1) == targets.target_ids_N
            for row in range(int(rows.max()) + 1):
                mine = rows == row
                _, terms = distillation_loss(
                    own[mine],
                    head,
                    targets.chunk(mine),
                    objective=Objective(temperature=1.0, alpha=1.0),
                    unshared_ids=self.unshared,
                    num_items=1,
                )
                kl.append(float(terms.kd))
                positions.append(float(terms.soft))
                exact.append(float(right[mine].all()))
        return {"kl": kl, "positions": positions, "exact": exact}

    def side_by_side(self, directory: Path, cached: CachedDataset, T: float, count: int) -> dict[str, float]:
        """KD and its gradient in all weights on the same batches, from the whole distribution, from stored top-k and tail, and from
        the whole distribution with its tail in the student's own shape, which is all that top-k and tail can express.
        """
        model = self.student(directory)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        head = model.get_output_embeddings().weight
        found: dict[str, list[Tensor]] = {}
        losses: dict[str, list[float]] = {}
        for indices, batch in self.batches(self.plan.train, count):
            rows, columns = batch.answer_rows, batch.answer_columns
            stored = join_stored([cached[index] for index in indices])
            full = replace(batch.targets, temperature=T).chunk(slice(None))
            shared = full.shared_ids_S
            with torch.no_grad():
                logits = backbone_states(model, batch.inputs, rows, columns) @ head.T
            flat = _flattened(full.log_p_NS, logits[:, shared] / T, stored.ids_NK, shared)
            variants: dict[str, StoredTargets | FullTargets] = {
                "cached": stored,
                "full": full,
                "flat": replace(full, log_p_NS=flat),
            }
            for name, targets in variants.items():
                own = backbone_states(model, batch.inputs, rows, columns)
                loss, _ = distillation_loss(
                    own,
                    head,
                    targets,
                    objective=Objective(temperature=T, alpha=1.0),
                    unshared_ids=self.unshared,
                    num_items=len(rows),
                )
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                found.setdefault(name, []).append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
                losses.setdefault(name, []).append(loss.item())
        g = {name: torch.stack(grads).mean(dim=0) for name, grads in found.items()}
        mean = {name: float(np.mean(values)) for name, values in losses.items()}
        apart = float((g["cached"] - g["full"]).norm())
        return {
            "loss_full": mean["full"],
            "loss_cached": mean["cached"],
            "loss_flat": mean["flat"],
            "gradient_difference": apart / float(g["full"].norm()),
            "gradient_cosine": float(torch.cosine_similarity(g["cached"].double(), g["full"].double(), dim=0)),
            "quantisation_difference": float((g["cached"] - g["flat"]).norm()) / float(g["full"].norm()),
            "share_of_tail_shape": 1 - float((g["cached"] - g["flat"]).norm()) ** 2 / apart**2 if apart else 1.0,
        }


def _flattened(log_p_NS: Tensor, student_NS: Tensor, ids_NK: Tensor, shared_S: Tensor) -> Tensor:
    """The distribution with the mass of the ids not stored spread as the student spreads its own."""
    stored_NS = torch.zeros_like(log_p_NS, dtype=torch.bool)
    stored_NS.scatter_(1, torch.searchsorted(shared_S, ids_NK), True)
    log_r_N1 = log_p_NS.masked_fill(stored_NS, -torch.inf).logsumexp(dim=1, keepdim=True)
    shape_NS = student_NS.masked_fill(stored_NS, -torch.inf).log_softmax(dim=1)
    return torch.where(stored_NS, log_p_NS, log_r_N1 + shape_NS)


def variant_recipe(directory: Path, name: str, seed: int) -> Recipe:
    """The recipe of a run: `online`, or `k64` for a cache of 64 entries, with one seed."""
    overrides = [f"training.seed={seed}", f"training.output_dir=runs/{name}-{seed}"]
    if name != "online":
        overrides += [f"cache.path=cache-{name[1:]}.zarr", f"cache.top_k={name[1:]}"]
    return load_recipe(directory / "recipe.yaml", overrides)


def ensure_cache(recipe: Recipe) -> None:
    """Dump the units that are missing."""
    try:
        if not cache_status(recipe.cache_location).pending:
            return
    except CacheMissing:
        pass
    dump(prepare_dump(recipe, progress=False), progress=False)


def interval(first: list[float], second: list[float]) -> str:
    """Difference of means with its 95% interval."""
    mean, low, high = paired_bootstrap(first, second)
    return f"{100 * mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"


def report(results: dict[str, dict[str, list[float]]], names: list[str], seeds: int) -> None:
    """Print each student, and the differences cached - online."""

    def pooled(name: str, field: str) -> list[float]:
        return [value for seed in range(seeds) for value in results[f"{name}-{seed}"][field]]

    def kl(name: str, seed: int | None = None) -> float:
        runs = [results[f"{name}-{s}"] for s in ([seed] if seed is not None else range(seeds))]
        return sum(sum(run["kl"]) for run in runs) / sum(sum(run["positions"]) for run in runs)

    click.echo(f"{'':10}{'KL to the teacher, nats/token, by seed':>44}{'mean':>10}{'exact':>9}")
    for name in ["base", *names]:
        runs = [f"{kl(name, seed):.5f}" for seed in range(seeds)]
        click.echo(f"{name:10}{'  '.join(runs):>44}{kl(name):>10.5f}{np.mean(pooled(name, 'exact')):>9.2%}")
    for name in names[1:]:
        click.echo(
            f"{name} - online: KL {100 * (kl(name) / kl('online') - 1):+.2f}%, exact "
            f"{interval(pooled(name, 'exact'), pooled('online', 'exact'))}"
        )


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default=3, show_default=True)
@click.option("--top-k", "top_ks", multiple=True, type=int, default=(64,), show_default=True)
@click.option("--minutes", default=6.0, show_default=True, help="Begin no run that would end later than this.")
@click.option("--train", "train_samples", default=1400, show_default=True)
@click.option("--validation", default=420, show_default=True)
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option(
    "--models",
    type=click.Path(path_type=Path, exists=True),
    help="Directory with teacher/ and student/ of another pair.",
)
@click.option("--threads", default=2, show_default=True)
def main(
    directory: Path,
    seeds: int,
    top_ks: tuple[int, ...],
    minutes: float,
    train_samples: int,
    validation: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    models: Path | None,
    threads: int,
) -> None:
    """Compare students trained on a cache with students trained online.

    Example: python -m benchmarks.fidelity build/fidelity --top-k 64 --top-k 16
    """
    torch.set_num_threads(threads)
    deadline = Deadline(minutes)
    recipe = place_pair(
        directory,
        train=train_samples,
        validation=validation,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        models=models,
    )
    names = ["online", *(f"k{k}" for k in top_ks)]
    measured = Measured(recipe)
    path = directory / "fidelity.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(seeds):
        if "base-0" not in results:
            results["base-0"] = measured.validate(directory / "models" / "student")
        results[f"base-{seed}"] = results["base-0"]
        for name in names:
            if f"{name}-{seed}" in results:
                continue
            if not deadline.allows():
                click.echo("not finished: run the command again")
                return
            begin = time.perf_counter()
            run = variant_recipe(directory, name, seed)
            if name != "online":
                ensure_cache(run)
            plan: Plan = prepare(run, online=name == "online", progress=False)
            if not is_finished(plan):
                train(plan)
            results[f"{name}-{seed}"] = measured.validate(run.output_dir / "final")
            write_json(path, results)
            deadline.took(time.perf_counter() - begin)
            click.echo(f"{name}, seed {seed}: {time.perf_counter() - begin:.0f} s", err=True)
    report(results, names, seeds)
    for label, place in (
        ("the base", directory / "models" / "student"),
        ("a trained student", directory / "runs" / "online-0" / "final"),
    ):
        for k in top_ks:
            run = variant_recipe(directory, f"k{k}", 0)
            cached = prepare(run, progress=False).train
            assert isinstance(cached, CachedDataset)
            figures = measured.side_by_side(place, cached, run.loss.temperature, count=4)
            click.echo(f"k = {k}, on the weights of {label}: " + ", ".join(f"{n} {v:.5f}" for n, v in figures.items()))


if __name__ == "__main__":
    main()
