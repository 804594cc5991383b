"""Which targets, temperature and divergence give the best student of a real teacher: every kind of cache from one exact dump.

    pip install 'firstsight[bench]'
    python -m benchmarks.real_teacher build/real --seeds 3

The data are the language reference that every Python carries (`pydoc_data.topics`), cut into answers of about 200 tokens; the
teacher is SmolLM2-135M-Instruct, and one exact dump gives every other cache by `fs-teacher derive`. Each arm trains the same
student from one initialisation, in the same order, and is one JSON line in DIR/arms.jsonl: a finished arm is not trained again, so
the command can be stopped and repeated. It prints Markdown tables: what each cache keeps and costs, its gradient's error by the
student's distance from the teacher, and the results of the arms on the validation rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.smollm2 import stored_mass, student_directory, teacher_directory, write_recipe
from firstsight.models.loading import backbone_states, load_student
from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.derive import derive, prepare_derivation
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.data.batch import Batch
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import ShapedTargets, StoredTargets, TeacherTargets
from phase2_student.training.prepare import Plan, prepare
from phase2_student.training.train import train
from storage.maintenance.status import cache_status

# N answer positions, S shared ids, D hidden size of the teacher

CACHES = {"top_k": [], "tail_16": ["cache.tail_rank=16"], "tail_64": ["cache.tail_rank=64"]}
"""For each derived cache, what its recipe adds."""
DISTANCES = (1.0, 0.3, 0.1, 0.03)
"""Noise on the teacher's states, in standard deviations of these, that makes students at different distances from the teacher."""
_BATCHES = 4
"""Training batches that gradient errors are measured on."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    cache: str
    temperature: float = 1.0
    alpha: float = 0.7
    divergence: str = "forward_kl"

    def overrides(self) -> list[str]:
        """The arm's settings, as overrides of the recipe."""
        return [
            f"cache.path={self.cache}.zarr",
            f"loss.temperature={self.temperature}",
            f"loss.alpha={self.alpha}",
            f"loss.divergence={self.divergence}",
        ]


def arms() -> dict[str, Arm]:
    """All arms by name."""
    found = {"hard": Arm(cache="top_k", alpha=0.0)}
    for alpha in (0.7, 1.0):
        end = "" if alpha == 0.7 else f"-a{alpha:g}"
        for cache in ("top_k", "tail_16", "tail_64", "exact"):
            for T in (1.0, 2.0):
                found[f"{cache}-T{T:g}{end}"] = Arm(cache=cache, temperature=T, alpha=alpha)
        for divergence in ("reverse_kl", "js"):
            found[f"exact-{divergence}{end}"] = Arm(cache="exact", divergence=divergence, alpha=alpha)
    return found


def write_text(directory: Path, rows: int, characters: int = 900) -> None:
    """Write rows of running text, each with part of a page of the language reference as its answer, cut at line ends.

    Every tenth row is for validation.
    """
    from pydoc_data.topics import topics

    directory.mkdir(parents=True, exist_ok=True)
    texts: list[tuple[str, str]] = []
    for name, text in sorted(topics.items()):
        part = ""
        for line in text.splitlines(keepends=True):
            if part and len(part) + len(line) > characters:
                texts.append((name, part))
                part = ""
            part += line
        texts.append((name, part))
    texts = [(name, part.strip()) for name, part in texts if len(part.strip()) >= characters // 3]
    order = np.random.default_rng(0).permutation(len(texts))[:rows]
    files: dict[str, list[str]] = {"train": [], "validation": []}
    for number, index in enumerate(order):
        name, part = texts[index]
        asked = {"role": "user", "content": f"Quote the Python reference on {name}."}
        row = {"id": f"{name}-{index}", "messages": [asked, {"role": "assistant", "content": part}]}
        files["validation" if number % 10 == 9 else "train"].append(json.dumps(row) + "\n")
    for split, lines in files.items():
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def place(directory: Path, models: Path | None, rows: int, steps: int) -> Path:
    """Write models, data and every cache; what exists is kept. Returns the recipe's path."""
    source = directory / "models" if models is None else models
    teacher = teacher_directory(source / "teacher")
    if not (directory / "student" / "model.safetensors").is_file():
        student_directory(directory / "student", teacher)
    write_text(directory / "data", rows)
    config = directory / "recipe.yaml"
    write_recipe(directory, steps)
    exact = recipe_of(config, str(teacher.resolve()), ["cache.targets=exact", "cache.path=exact.zarr"])
    dump(prepare_dump(exact, progress=False))
    for name, extra in CACHES.items():
        wanted = recipe_of(config, str(teacher.resolve()), [f"cache.path={name}.zarr", *extra])
        derive(prepare_derivation(exact.cache_location, wanted), progress=False)
    return config


def recipe_of(config: Path, teacher: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a dump or a run: one row per step, so that 500 steps are one pass over about 100,000 tokens."""
    fixed = [
        "cache.generate_missing=false",
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=1",
        "training.warmup_steps=20",
    ]
    return load_recipe(config, [f"teacher.model={teacher}", *fixed, *overrides])


def batches(plan: Plan, data: Any, count: int | None = None, size: int = 8) -> Iterator[Batch[Any]]:
    """The first batches of a plan's samples, ready for the loss."""
    complete, collate = plan.source.completion(torch.device("cpu")), plan.source.collator()
    stop = len(data) if count is None else min(len(data), count * size)
    for start in range(0, stop, size):
        yield complete(collate([data[index] for index in range(start, min(start + size, stop))]))


@torch.no_grad()
def measure(plan: Plan, student: Path) -> dict[str, float]:
    """Measure a student on the validation rows, against the teacher's whole distribution.

    Args:
        plan: a plan on the exact cache.
        student: the student's directory.
    """
    model = load_student(student, plan.recipe.student, dtype=torch.float32).eval()
    head = model.get_output_embeddings().weight
    unshared = torch.from_numpy((~plan.source.shared_mask()).nonzero()[0])
    sums = dict.fromkeys(("kl_T1", "kl_T2", "nll", "agree", "soft", "hard"), 0.0)
    for batch in batches(plan, plan.validation):
        states = backbone_states(model, batch.inputs, batch.answer_rows, batch.answer_columns)
        for T in (1.0, 2.0):
            targets = replace(batch.targets, temperature=T)
            objective = Objective(temperature=T, alpha=1.0)
            _, terms = distillation_loss(states, head, targets, objective, unshared_ids=unshared, num_items=1)
            sums[f"kl_T{T:g}"] += float(terms.kd) / T**2
        sums["nll"] += float(terms.ce)
        sums["agree"] += float(terms.agree)
        sums["soft"] += float(terms.soft)
        sums["hard"] += float(terms.hard)
    means = {name: sums[name] / sums["soft"] for name in ("kl_T1", "kl_T2", "agree")}
    return {**means, "nll": sums["nll"] / max(1.0, sums["hard"])}


@torch.no_grad()
def gradient_errors(plans: dict[str, Plan], distance: float, temperature: float) -> dict[str, float]:
    """KL in nats at T = 1 of a student that is the teacher with noise, and the error of each cache's slope in the logits.

    The error is its length divided by that of the whole distribution's slope, over all positions together.

    Args:
        plans: a plan on every cache, `exact` among them, made at this temperature.
        distance: size of the noise.
        temperature: T.
    """
    generator = torch.Generator().manual_seed(0)
    squares = dict.fromkeys([name for name in plans if name != "exact"], 0.0)
    whole = kl = count = 0.0
    walks = {name: batches(plan, plan.train, _BATCHES) for name, plan in plans.items()}
    for group in zip(*walks.values(), strict=True):
        found = dict(zip(walks, group, strict=True))
        exact: TeacherTargets = found["exact"].targets
        noise_ND = torch.randn(exact.states_ND.shape, generator=generator) * exact.states_ND.float().std(dim=0)
        soft = exact.soft_N
        student_NS = exact.head.log_probabilities(exact.states_ND.float() + distance * noise_ND)[soft]
        teacher_NS = exact.head.log_probabilities(exact.states_ND)[soft]
        kl += float((teacher_NS.exp() * (teacher_NS - student_NS)).sum())
        count += len(teacher_NS)
        p_NS, q_NS = ((values / temperature).softmax(dim=1) for values in (teacher_NS, student_NS))
        whole += float((q_NS - p_NS).square().sum())
        for name in squares:
            squares[name] += float((_read(found[name].targets, soft, q_NS, exact) - p_NS).square().sum())
    return {"KL": kl / count, **{name: float(np.sqrt(value / whole)) for name, value in squares.items()}}


def _read(targets: StoredTargets | ShapedTargets, soft: Tensor, q_NS: Tensor, exact: TeacherTargets) -> Tensor:
    """The distribution whose slope a cache gives: a bucket takes the student's own shape."""
    if isinstance(targets, ShapedTargets):
        return targets.chunk(soft).log_p_NS.exp()
    columns = torch.searchsorted(exact.head.student_ids_S, targets.ids_NK[soft].contiguous())
    rest_NS = q_NS.scatter(1, columns, 0.0)
    rest_NS = rest_NS / rest_NS.sum(dim=1, keepdim=True) * targets.log_r_N[soft].exp()[:, None]
    return rest_NS.scatter(1, columns, targets.log_p_NK[soft].exp())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arms_table(results: Sequence[dict[str, Any]]) -> str:
    """Mean and spread over the seeds, and the share of the exact cache's gain over hard labels."""
    names = list(dict.fromkeys(row["arm"] for row in results))
    mean = {
        (name, field): [row[field] for row in results if row["arm"] == name]
        for name in names
        for field in ("nll", "kl_T1", "kl_T2", "agree")
    }
    rows = []
    for name in names:
        cells = [name, str(len(mean[name, "nll"]))]
        for field in ("nll", "kl_T1", "kl_T2", "agree"):
            values = mean[name, field]
            cells.append(f"{np.mean(values):.4f}" + (f" +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""))
        for field in ("nll", "kl_T1"):
            if "hard" in names and "exact-T1" in names and name != "hard":
                hard, best = np.mean(mean["hard", field]), np.mean(mean["exact-T1", field])
                cells.append(f"{(hard - np.mean(mean[name, field])) / (hard - best):.0%}")
            else:
                cells.append("")
        rows.append(cells)
    shares = ["of exact-T1's gain over hard: NLL", "KL T = 1"]
    header = ["arm", "seeds", "NLL", "KL T = 1", "KL T = 2", "top-1", *shares]
    return table(header, rows)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--models", type=click.Path(path_type=Path, exists=True), help="Directory with teacher/ from an earlier call."
)
@click.option(
    "--arms",
    "chosen",
    multiple=True,
    type=click.Choice(list(arms())),
    help="An arm; may be given several times. Default: all.",
)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--steps", default=500, show_default=True, type=click.IntRange(min=1), help="Steps of each arm, one row each."
)
@click.option(
    "--rows", default=549, show_default=True, type=click.IntRange(20, 549), help="Rows of text, a tenth held out."
)
@click.option("--threads", default=2, show_default=True)
def main(
    directory: Path,
    models: Path | None,
    chosen: tuple[str, ...],
    seeds: int,
    steps: int,
    rows: int,
    threads: int,
) -> None:
    """Train one student on every kind of target of one dump of a real teacher.

    Example: python -m benchmarks.real_teacher build/real --arms hard --arms top_k-T1 --steps 100
    """
    torch.set_num_threads(threads)
    directory.mkdir(parents=True, exist_ok=True)
    config = place(directory, models, rows, steps)
    teacher = str(((directory / "models" if models is None else models) / "teacher").resolve())
    exact = prepare(recipe_of(config, teacher, Arm(cache="exact").overrides()), progress=False)
    kinds = []
    for name in (*CACHES, "exact"):
        location = str(directory / f"{name}.zarr")
        status = cache_status(location)
        held = stored_mass(location) if name in CACHES else {}
        masses = ", ".join(f"{mass:.3f} at T = {T:g}" for T, mass in held.items()) or "all"
        kinds.append([name, f"{status.bytes_per_position or 0:.0f}", f"{status.head_bytes or 0:,}", masses])
    click.echo(table(["cache", "bytes per position", "bytes of the head", "mass of the stored entries"], kinds))
    kept = directory / "errors.json"
    errors = json.loads(kept.read_text()) if kept.is_file() else []
    for T in (1.0, 2.0) if not errors else ():
        arm = {name: Arm(cache=name, temperature=T).overrides() for name in (*CACHES, "exact")}
        plans = {name: prepare(recipe_of(config, teacher, each), progress=False) for name, each in arm.items()}
        for distance in DISTANCES:
            found = gradient_errors(plans, distance, T)
            errors.append([f"{T:g}", *(f"{value:.3f}" for value in found.values())])
    kept.write_text(json.dumps(errors), encoding="utf-8")
    click.echo("\n" + table(["T", "KL T = 1 of the student, nats", *CACHES], errors) + "\n")
    path = directory / "arms.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    wanted = [(seed, name) for seed in range(seeds) for name in (chosen or arms())]
    for seed, name in wanted:
        if any((row["arm"], row["seed"], row["steps"]) == (name, seed, steps) for row in results):
            continue
        begin, output = time.perf_counter(), directory / "runs" / f"{name}-{seed}-{steps}"
        run = [*arms()[name].overrides(), f"training.seed={seed}", f"training.output_dir={output.resolve()}"]
        train(prepare(recipe_of(config, teacher, run), progress=False))
        row = {"arm": name, "seed": seed, "steps": steps, "seconds": round(time.perf_counter() - begin, 1)}
        results.append(row | measure(exact, output / "final"))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[-1]) + "\n")
        click.echo(f"{name}, seed {seed}: {row['seconds']:.0f} s", err=True)
    click.echo(arms_table([row for row in results if row["steps"] == steps]))


if __name__ == "__main__":
    main()
