"""The demo: the whole path on the miniature pair, by the commands that a user would type: data, dump, two trainings, evaluation.

Leaves DIR/recipe.yaml, DIR/models, DIR/data, DIR/cache.zarr and DIR/runs, so that every command can be tried on them.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import click

from firstsight.errors import FirstSightError

Regime = Literal["few-labels", "clean"]
TRAIN_SAMPLES = 1_400
LABELS = 140
"""Training samples that have a label where labels are few."""
VALIDATION_SAMPLES = 420
BATCH = 16
EPOCHS = 8

RECIPE = f"""\
# The miniature pair: a real Qwen2-VL teacher into a real Qwen2-VL student, small enough for two CPU cores.
teacher:
  model: models/teacher
  quantization: int8
  dtype: float32           # on a CPU float32 is faster than bfloat16
student:
  model: models/student
  dtype: bfloat16          # of the saved weights
data:
  root: data
  max_length: 512
cache:
  path: cache.zarr
  targets: top_k           # exact: whole distributions
{{answers}}loss:
  temperature: 2.0
  alpha: 0.7
training:
  output_dir: runs/distilled
  num_train_epochs: {EPOCHS}
  per_device_train_batch_size: {BATCH}
  learning_rate: 1.0e-3
  weight_decay: 0.01
  lr_scheduler_type: cosine
  warmup_steps: 20
  save_only_model: false
  seed: 0
"""
_GENERATE = """\
  generate_missing: true   # the teacher answers what has no label
  generate_max_tokens: 16
"""


def run_demo(directory: Path, regime: Regime = "clean") -> None:
    """Run the demo in `directory`; a second run continues where the first one ended.

    Args:
        directory: for data, models, cache, runs and report.
        regime: `few-labels`: one training sample in ten has its label, and the teacher answers the rest; `clean`: all have theirs.

    Raises:
        FirstSightError: one of the commands failed, or the directory holds the demo of another regime.
    """
    demo = Demo(directory, few=regime == "few-labels")
    demo.prepare()
    begin = time.perf_counter()
    demo.make_data()
    demo.command("fs-teacher", "dump")
    trained = demo.train()
    demo.evaluate(trained)
    click.echo(
        f"\n{_READING[regime]} {demo.page} shows it with charts and images.\n"
        f"The demo took {time.perf_counter() - begin:.0f} s. Every command above can be tried on {directory}, for instance:"
    )
    for line in demo.suggestions():
        click.echo(f"  {line}")


_READING: dict[Regime, str] = {
    "few-labels": (
        f"base: the student before; hard: trained on the {LABELS} labels alone; answers: on those and the teacher's answers to the "
        "rest, as labels; distilled: on the cache, the same answers with the teacher's soft targets. "
        f"{EPOCHS} epochs for each, and of each its best checkpoint."
    ),
    "clean": (
        "base: the student before; hard: trained on the labels alone (alpha = 0); distilled: trained on the cache. Same steps for both."
    ),
}


class Demo:
    """The commands of a demo.

    Args:
        directory: of the demo.
        few: few samples have labels.
    """

    def __init__(self, directory: Path, *, few: bool) -> None:
        self.directory = directory
        self.few = few
        self.recipe = directory / "recipe.yaml"
        self.runs = directory / "runs"
        self.page = directory / "report.html"

    def prepare(self) -> None:
        """The directory with models and recipe."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _copy_models(self.directory / "models")
        data = self.directory / "data"
        if data.exists() and (data / "labelled.jsonl").exists() != self.few:
            raise FirstSightError(
                f"{self.directory} holds the demo of another regime ({'clean' if self.few else 'few-labels'}); give another --dir, or "
                "state that --regime"
            )
        if not self.recipe.exists():
            self.recipe.write_text(RECIPE.format(answers=_GENERATE if self.few else ""), encoding="utf-8")

    def make_data(self) -> None:
        """Draw the scenes, unless that is done."""
        data = self.directory / "data"
        if (data / "validation.jsonl").exists():
            return
        samples = ["--train", str(TRAIN_SAMPLES), "--validation", str(VALIDATION_SAMPLES), "--seed", "0"]
        _run("firstsight", "data", "synth", str(data), *samples, *(["--labels", str(LABELS)] if self.few else []))

    def train(self) -> list[str]:
        """Train the students; their names."""
        if not self.few:
            self._train("hard", "loss.alpha=0")
            self._train("distilled")
            return ["hard", "distilled"]
        # on a tenth of the rows more epochs only learn them by heart; of each run its best checkpoint is compared
        self._train("hard", "loss.alpha=0", "data.train=labelled.jsonl")
        # the teacher's answers as labels: rows like any others
        answers = self.directory / "data" / "answers.jsonl"
        if not answers.exists():
            self.command("fs-teacher", "answers", str(self.directory / "cache.zarr"), "--out", str(answers))
        rows = ["data.train=[labelled.jsonl, answers.jsonl]", "cache.path=answers.zarr", "cache.generate_missing=false"]
        self.command("fs-teacher", "dump", *_set(rows))
        self._train("answers", "loss.alpha=0", *rows)
        self._train("distilled")
        return ["hard", "answers", "distilled"]

    def evaluate(self, trained: Sequence[str]) -> None:
        """Measure teacher, base and the trained students, and write the page."""
        candidates = ["teacher", "base", *(f"{name}={self.runs / name / 'best'}" for name in trained)]
        options = [option for candidate in candidates for option in ("--model", candidate)]
        evaluation = str(self.directory / "evaluation")
        self.command("fs-student", "eval", *options, "--timed", "8", "--requests", "10", "--output", evaluation)
        runs = [str(self.runs / name) for name in trained]
        _run("fs-student", "report", *runs, "--evaluation", evaluation, "--output", str(self.page))

    def command(self, program: str, name: str, *arguments: str) -> None:
        """Run a command on the demo's recipe."""
        _run(program, name, *arguments, "--config", str(self.recipe))

    def suggestions(self) -> list[str]:
        """Commands to try next."""
        config = f"--config {shlex.quote(str(self.recipe))}"
        cache = shlex.quote(str(self.directory / "cache.zarr"))
        return [
            f"fs-teacher show {cache} {config}      # what the teacher knows of a sample",
            f"fs-teacher verify {cache}     # every byte of the cache",
            f"fs-student train {config} --set loss.temperature=1 --set training.output_dir=runs/t1",
            f"fs-student sweep {config} --grid temperature=1,2 --grid alpha=0.7,1",
        ]

    def _train(self, name: str, *settings: str) -> None:
        self.command("fs-student", "train", *_set([*settings, f"training.output_dir=runs/{name}"]))


def _set(settings: Sequence[str]) -> list[str]:
    return [option for setting in settings for option in ("--set", setting)]


def _copy_models(directory: Path) -> None:
    for name in ("teacher", "student"):
        target = directory / name
        if not target.exists():
            with as_file(files("firstsight.demo.miniature") / name) as source:
                shutil.copytree(source, target)


def _run(command: str, *arguments: str) -> None:
    click.secho(f"\n$ {shlex.join([command, *arguments])}", bold=True)
    beside = Path(sys.executable).with_name(command)
    program = str(beside) if beside.exists() else command
    code = subprocess.run([program, *arguments], check=False).returncode
    if code:
        raise FirstSightError(f"{command} {arguments[0]} ended with exit code {code}; see its message above")
