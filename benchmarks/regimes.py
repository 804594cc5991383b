"""Where distillation wins, ties and loses: few labels, wrong labels, ambiguous labels, clean labels, on the miniature pair; and how
far a student gets without labels as the teacher answers more scenes.

    python -m benchmarks.regimes build/regimes                     # everything, then the page
    python -m benchmarks.regimes build/regimes --regime A          # one regime
    python -m benchmarks.regimes build/regimes --report            # the page of the runs so far

Each arm chooses between two learning rates on one seed, by its own loss on the validation rows, and is then trained with the other
seeds; the checkpoint that was best on the validation rows is measured on the test rows. A finished run is one JSON line in
DIR/runs.jsonl and is not trained again, so the command can be stopped and repeated. The teacher is loaded only for the caches.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.regime_data import (
    REGIMES,
    SEED,
    Sizes,
    answer_rows,
    label_rows,
    place,
    recipe_of,
    rows_of_scenes,
    scene_counts,
)
from benchmarks.regime_report import write_report
from benchmarks.regime_scores import TestRows
from firstsight.data.samples import Sample
from firstsight.models.loading import load_student, load_teacher
from firstsight.prompting import Encoded
from phase2_student.training.prepare import Plan, prepare
from phase2_student.training.train import train
from storage.targets import SampleTargets

RATES = (5e-4, 1.5e-3)
"""Learning rates that each arm tries on its first seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    cache: str = "top_k"
    rows: str = "train.jsonl"
    temperature: float = 1.0
    alpha: float = 0.7
    divergence: str = "forward_kl"
    shuffled: bool = False
    """Samples are given the targets of others."""
    extra: bool = False
    """Trained after all others."""
    times: int = 1
    """How many times as many steps as the other arms have."""
    rates: tuple[float, ...] = RATES
    """Learning rates that are tried on the first seed."""

    def overrides(self) -> list[str]:
        """The arm's settings, as overrides of the recipe."""
        return [
            f"cache.path={self.cache}.zarr",
            f"data.train={self.rows}",
            f"loss.temperature={self.temperature}",
            f"loss.alpha={self.alpha}",
            f"loss.divergence={self.divergence}",
        ]


def arms(regime: str, directory: Path, sizes: Sizes) -> dict[str, Arm]:
    """The arms of a regime by name, in the order of the table."""
    if not REGIMES[regime].rivals:
        counts = scene_counts(REGIMES[regime], sizes)
        most = counts[-1] // counts[0]
        ways = [(count, 1) for count in counts] + [(counts[0], most), (counts[-1], most), (counts[-1], 4 * most)]
        return {  # the longest arm has one rate only, for its time
            f"{count:,} scenes, {times * sizes.steps:,} steps": Arm(
                rows=rows_of_scenes(count), times=times, rates=RATES[:1] if times > most else RATES
            )
            for count, times in ways
        }
    found = {
        "hard": Arm(alpha=0.0, rows=label_rows(directory)),
        "answers": Arm(alpha=0.0, cache="answers", rows=answer_rows(directory)),
        "T = 1": Arm(),
        "T = 2": Arm(temperature=2.0),
        "T = 1, alpha 1": Arm(alpha=1.0),
        "T = 2, alpha 1": Arm(temperature=2.0, alpha=1.0),
    }
    if regime == "A":
        found["shuffled"] = Arm(shuffled=True)
        kinds = {
            f"{kind}, T = {T:g}": Arm(cache=kind, temperature=T, extra=True)
            for kind in ("tail_64", "exact")
            for T in (1.0, 2.0)
        }
        divergences = ("reverse_kl", "skewed_kl", "js", "tv")
        return found | kinds | {name: Arm(cache="exact", divergence=name, extra=True) for name in divergences}
    # the teacher's own answers to all questions, with its soft targets: the labels are not used
    return found | {"own answers, T = 1": Arm(cache="own", rows="unlabelled.jsonl")}


class _Shuffled:
    """A cache whose keys point to the targets of other samples.

    A sample with a generated answer is given the answer and distributions of another such sample; one with a label keeps the label,
    and is given the distributions of another label, repeated or cut to its length.
    """

    def __init__(self, cache: Any, keys: Sequence[str]) -> None:
        self._cache = cache
        self.temperatures = cache.temperatures
        self._other: dict[str, str] = {}
        for hard in (True, False):
            group = [key for key in dict.fromkeys(keys) if cache[key].hard == hard]
            order = [group[i] for i in np.random.default_rng(SEED).permutation(len(group))]
            self._other |= dict(zip(order, order[1:] + order[:1], strict=True))

    def __getitem__(self, key: str) -> SampleTargets:
        own: SampleTargets = self._cache[key]
        other: SampleTargets = self._cache[self._other[key]]
        if not own.hard:
            return dataclasses.replace(other, key=key)
        rows = other.targets.rows(np.arange(len(own.targets)) % len(other.targets))
        return dataclasses.replace(own, targets=dataclasses.replace(rows, target_ids=own.targets.target_ids))


class Lines:
    """DIR/runs.jsonl: a line per finished run.

    Args:
        path: path of the file.
        sizes: lines of other sizes are left alone.
    """

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self._path, self._sizes = path, asdict(sizes)
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.rows = [row for row in rows if row["sizes"] == self._sizes]

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """The lines that have all of these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in fields.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Append a line."""
        self.rows.append(row | {"sizes": self._sizes})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")


class Bench:
    """The runs of one regime.

    Args:
        directory: directory of all regimes.
        regime: letter of the regime.
        sizes: sizes of data and runs.
        lines: lines of the finished runs.
        seeds: number of seeds of each arm.
    """

    def __init__(self, directory: Path, regime: str, sizes: Sizes, lines: Lines, seeds: int) -> None:
        self.home = directory / regime
        self.regime, self.lines, self.seeds = regime, lines, seeds
        place(self.home, regime, sizes)
        self.arms, self.sizes = arms(regime, self.home, sizes), sizes
        exact = recipe_of(
            self.home, ["cache.path=exact.zarr", "data.validation=test.jsonl", "training.output_dir=runs/none"]
        )
        self._exact = prepare(exact, progress=False)
        self._pictures: dict[str, Any] = {}
        self._remember(self._exact)
        self.test = TestRows(self._exact, longest=REGIMES[regime].longest, seed=SEED)
        self._plans: dict[tuple[str, str], Plan] = {}

    def pending(self) -> Iterator[tuple[str, int]]:
        """Arms and seeds, in the order in which they are trained; the main arms first."""
        for extra in (False, True):
            names = [name for name, arm in self.arms.items() if arm.extra == extra]
            yield from ((name, seed) for seed in range(self.seeds) for name in names)

    def left(self) -> int:
        """Number of runs still to train."""
        trained = {
            (row["arm"], row["seed"], row["rate"]) for row in self.lines.find(regime=self.regime) if "rate" in row
        }
        return sum(len(arm.rates) + self.seeds - 1 for arm in self.arms.values()) - len(trained)

    def reference(self) -> None:
        """Measure teacher and base, once."""
        section = self._exact.recipe
        loaders: dict[str, Callable[[], Any]] = {
            "teacher": lambda: load_teacher(self.home / "models" / "teacher", section.teacher),
            "base": lambda: load_student(self.home / "models" / "student", section.student, dtype=torch.float32).eval(),
        }
        for name, loaded in loaders.items():
            if not self.lines.find(regime=self.regime, arm=name):
                self.lines.add({"regime": self.regime, "arm": name, "seed": 0} | self.test.score(loaded()).as_json())

    def run(self, name: str, seed: int) -> Iterator[float]:
        """Train an arm with a seed: with all learning rates if it is the first one, else with the best of them.

        Yields:
            The seconds of each run that was not finished before.
        """
        rates = self.arms[name].rates if seed == 0 else (self.best_rate(name),)
        for rate in rates:
            if not self.lines.find(regime=self.regime, arm=name, seed=seed, rate=rate):
                begin = time.perf_counter()
                self._train(name, seed, rate)
                yield time.perf_counter() - begin

    def best_rate(self, name: str) -> float:
        """The learning rate whose run had the lowest loss on the validation rows."""
        tried = self.lines.find(regime=self.regime, arm=name, seed=0)
        chosen = self.arms[name].rates
        return float(
            min((row for row in tried if row["rate"] in chosen), key=lambda row: row["validation_loss"])["rate"]
        )

    def _remember(self, plan: Plan) -> None:
        """Let all plans share the images, decoded once: decoding takes a third of a step of such a small student."""
        prompter = plan.source.prompter
        encode = prompter.encode

        def remembered(sample: Sample, answers: Any = None) -> Encoded:
            name = str(sample.images)
            if name not in self._pictures:
                self._pictures[name] = prompter.pictures(sample.open_images(), sample.image_limits)
            return encode(sample, answers, pictures=self._pictures[name])

        prompter.encode = remembered  # type: ignore[method-assign, assignment]

    def _train(self, name: str, seed: int, rate: float) -> None:
        arm, begin = self.arms[name], time.perf_counter()
        output = self.home / "runs" / f"{list(self.arms).index(name)}-{seed}-{rate:g}"
        settings = [
            f"training.seed={seed}",
            f"training.learning_rate={rate}",
            f"training.output_dir={output.resolve()}",
            f"training.max_steps={arm.times * self.sizes.steps}",
            f"training.eval_steps={max(1, arm.times * self.sizes.steps // 5)}",
        ]
        recipe = recipe_of(self.home, [*arm.overrides(), *settings])
        shared = (arm.cache, arm.rows)
        plan = prepare(recipe, progress=False, like=self._plans.get(shared))
        if shared not in self._plans:
            self._remember(plan)
            self._plans[shared] = plan
        if arm.shuffled:
            plan = dataclasses.replace(plan, train=shuffled(plan.train))
        result = train(plan)
        if not result.finished:
            raise SystemExit(f"{result.stopped_text}")
        trained = time.perf_counter()
        model = load_student(output / "best", recipe.student, dtype=torch.float32).eval()
        scores = self.test.score(model).as_json()
        row = {
            "regime": self.regime,
            "arm": name,
            "seed": seed,
            "rate": rate,
            "validation_loss": result.best_validation_loss,
        }
        seconds = {"train_seconds": round(trained - begin, 1), "test_seconds": round(time.perf_counter() - trained, 1)}
        self.lines.add(row | seconds | scores)
        shutil.rmtree(output)  # measured; the directory is this command's own


def shuffled(data: Any) -> Any:
    """The training rows of a top_k cache with the targets of others."""
    other = copy.copy(data)
    other.cache = _Shuffled(data.cache, [key for key, _ in data.samples])
    return other


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--regime",
    "chosen",
    multiple=True,
    type=click.Choice(list(REGIMES)),
    help="A regime; may be given several times. Default: all.",
)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=Sizes.steps, show_default=True, type=click.IntRange(min=5), help="Steps of a run.")
@click.option("--batch", default=Sizes.batch, show_default=True, type=click.IntRange(min=1), help="Samples of a step.")
@click.option("--train", "train_rows", default=Sizes.train, show_default=True, type=click.IntRange(min=20))
@click.option("--validation", default=Sizes.validation, show_default=True, type=click.IntRange(min=7))
@click.option("--test", "test_rows", default=Sizes.test, show_default=True, type=click.IntRange(min=7))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--report", "only_report", is_flag=True, help="Train nothing; write the page of the runs so far.")
@click.option("--docs", type=click.Path(path_type=Path, file_okay=False), default=Path("docs"), show_default=True)
def main(
    directory: Path,
    chosen: tuple[str, ...],
    seeds: int,
    steps: int,
    batch: int,
    train_rows: int,
    validation: int,
    test_rows: int,
    threads: int,
    only_report: bool,
    docs: Path,
) -> None:
    """Train students on few, wrong, ambiguous and clean labels, with and without the teacher's soft targets.

    Example: python -m benchmarks.regimes build/regimes --regime A --seeds 5
    """
    torch.set_num_threads(threads)
    directory.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(train=train_rows, validation=validation, test=test_rows, steps=steps, batch=batch)
    lines = Lines(directory / "runs.jsonl", sizes)
    if not only_report:
        for regime in chosen or tuple(REGIMES):
            _run(Bench(directory, regime, sizes, lines, seeds))
    write_report(lines.rows, docs)


def _run(bench: Bench) -> None:
    bench.reference()
    taken: list[float] = []
    for name, seed in bench.pending():
        for seconds in bench.run(name, seed):
            taken.append(seconds)
            left = bench.left() * float(np.mean(taken))
            click.echo(
                f"{bench.regime}: {name}, seed {seed}: {seconds:.0f} s; {bench.left()} runs left, about {left / 60:.0f} minutes",
                err=True,
            )


if __name__ == "__main__":
    main()
