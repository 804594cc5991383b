"""The demo: the whole path on the miniature pair, by the commands that a user would type: data, dump, trainings, evaluation.

Leaves DIR/recipe.yaml, DIR/models, DIR/data, DIR/cache.zarr and DIR/runs, so that every command can be tried on them.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import click

from firstsight.errors import FirstSightError

Regime = Literal["few-labels", "noisy", "ambiguous", "clean"]
DEFAULT_REGIME: Regime = "few-labels"
TRAIN_SAMPLES = 1_400
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
  train: {{rows}}
  max_length: 512
cache:
  path: cache.zarr
  targets: top_k           # exact: whole distributions
  generate_missing: {{generate}}   # the teacher answers what has no label
  generate_max_tokens: {{longest}}
loss:
  temperature: 2.0
  alpha: 0.7
training:
  output_dir: runs/distilled
  num_train_epochs: {{epochs}}
  per_device_train_batch_size: {BATCH}
  learning_rate: 1.0e-3
  weight_decay: 0.01
  lr_scheduler_type: cosine
  warmup_steps: 20
  save_only_model: false
  seed: 0
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What differs from one regime to another."""

    help: str
    """What labels there are, for the command's help."""
    reading: str
    """What the columns of the table mean."""
    data: tuple[str, ...] = ()
    """Options of `firstsight data synth`."""
    epochs: int = EPOCHS
    rows: str = "train.jsonl"
    """The rows that the student is distilled on."""
    labels: str = "train.jsonl"
    """The rows that have a label; those of `labelled.jsonl` are among `rows`."""
    questions: str | None = None
    """The rows that the teacher answers; None: it answers none."""
    longest: int = 32
    """Maximum number of tokens of an answer that the teacher gives; the longest answer to the questions has 23."""


_RIVALS = "Each student is the checkpoint with the lowest validation loss."
KINDS: dict[Regime, Kind] = {
    "few-labels": Kind(
        help="one training sample in ten has a label, the teacher answers the rest",
        reading=(
            "base: the student before training; hard: trained on the 140 labels alone; answers: on those labels and the teacher's "
            f"answers to the rest; distilled: on the cache, the same answers with the teacher's soft targets. {_RIVALS}"
        ),
        data=("--labels", "140"),
        labels="labelled.jsonl",
        questions="train.jsonl",
    ),
    "noisy": Kind(
        help="two training samples in five have the label of another sample of their category",
        reading=(
            "base: the student before training; hard: trained on the labels, two in five of them wrong; answers: on the teacher's own "
            f"answers as labels; distilled: on a cache of these answers with the teacher's soft targets, without the labels. {_RIVALS}"
        ),
        data=("--swapped", "0.4"),
        epochs=6,
        rows="questions.jsonl",
        questions="questions.jsonl",
    ),
    "ambiguous": Kind(
        help="images to describe, each labelled with one of many valid wordings",
        reading=(
            "base: the student before training; hard: trained on the labels, one wording for each image; answers: on the teacher's "
            "most likely wordings as labels; distilled: on the cache, the labels with the teacher's soft targets. "
            f"{_RIVALS} No model can know which of the valid wordings was drawn, so exact match means little: the NLL of the true answers "
            "and the KL to the teacher show how near a model is to the distribution that they were drawn from."
        ),
        data=("--described",),
        epochs=4,
        questions="questions.jsonl",
        longest=112,
    ),
    "clean": Kind(
        help="every training sample has its label",
        reading=(
            "base: the student before training; hard: trained on the labels alone (alpha = 0); distilled: trained on the cache, for the "
            f"same number of steps. {_RIVALS}"
        ),
    ),
}


def run_demo(directory: Path, regime: Regime = DEFAULT_REGIME) -> None:
    """Run the demo in `directory`; a second run continues where the first one ended.

    Args:
        directory: for data, models, cache, runs and report.
        regime: which labels there are.

    Raises:
        FirstSightError: one of the commands failed, or the directory holds the demo of another regime.
    """
    demo = Demo(directory, regime)
    demo.prepare()
    begin = time.perf_counter()
    demo.make_data()
    trained = demo.train()
    demo.evaluate(trained)
    click.echo(
        f"\n{KINDS[regime].reading} {demo.page} shows it with charts and images.\n"
        f"The demo took {time.perf_counter() - begin:.0f} s. Every command above can be tried on {directory}, for instance:"
    )
    for line in demo.suggestions():
        click.echo(f"  {line}")


class Demo:
    """The commands of a demo.

    Args:
        directory: directory of the demo.
        regime: which labels there are.
    """

    def __init__(self, directory: Path, regime: Regime) -> None:
        self.directory = directory
        self.regime = regime
        self.kind = KINDS[regime]
        self.recipe = directory / "recipe.yaml"
        self.runs = directory / "runs"
        self.page = directory / "report.html"

    def prepare(self) -> None:
        """Make the directory, with models and recipe."""
        self.directory.mkdir(parents=True, exist_ok=True)
        mark = self.directory / "regime.txt"
        found = mark.read_text(encoding="utf-8").strip() if mark.exists() else None
        if found is None and (self.directory / "data").exists():
            raise FirstSightError(
                f"{self.directory} holds data that this demo did not make, or an older version of it; choose another --dir"
            )
        if found not in (None, self.regime):
            raise FirstSightError(
                f"{self.directory} holds the demo of another regime ({found}); choose another --dir, or pass --regime {found}"
            )
        mark.write_text(f"{self.regime}\n", encoding="utf-8")
        _copy_models(self.directory / "models")
        if not self.recipe.exists():
            kind = self.kind
            generate = str(kind.questions == kind.rows).lower()
            self.recipe.write_text(
                RECIPE.format(rows=kind.rows, generate=generate, longest=kind.longest, epochs=kind.epochs),
                encoding="utf-8",
            )

    def make_data(self) -> None:
        """Draw the scenes, unless that is done."""
        data = self.directory / "data"
        if (data / "validation.jsonl").exists():
            return
        samples = ["--train", str(TRAIN_SAMPLES), "--validation", str(VALIDATION_SAMPLES), "--seed", "0"]
        _run("firstsight", "data", "synth", str(data), *samples, *self.kind.data)

    def train(self) -> list[str]:
        """Dump and train; returns the names of the students. The recipe is the distilled one's; the others override what differs."""
        kind = self.kind
        self.command("fs-teacher", "dump")
        labels = [f"data.train={kind.labels}"] if kind.labels != kind.rows else []
        if kind.labels not in (kind.rows, "labelled.jsonl"):  # rows that are not in the cache
            labels += ["cache.path=labels.zarr", "cache.generate_missing=false"]
            self.command("fs-teacher", "dump", *_set(labels))
        self._train("hard", "loss.alpha=0", *labels)
        if kind.questions is None:
            self._train("distilled")
            return ["hard", "distilled"]
        own: list[str] = []
        if kind.questions != kind.rows:  # the teacher's answers are not in the cache
            own = [f"data.train={kind.questions}", "cache.path=own.zarr", "cache.generate_missing=true"]
            self.command("fs-teacher", "dump", *_set(own))
        # the teacher's answers as labels: rows like any others
        answers = self.directory / "data" / "answers.jsonl"
        if not answers.exists():
            source = self.directory / ("own.zarr" if own else "cache.zarr")
            self.command("fs-teacher", "answers", str(source), "--out", str(answers), *_set(own))
        train = "[labelled.jsonl, answers.jsonl]" if kind.labels == "labelled.jsonl" else "answers.jsonl"
        rows = [f"data.train={train}", "cache.path=answers.zarr", "cache.generate_missing=false"]
        self.command("fs-teacher", "dump", *_set(rows))
        self._train("answers", "loss.alpha=0", *rows)
        self._train("distilled")
        return ["hard", "answers", "distilled"]

    def evaluate(self, trained: Sequence[str]) -> None:
        """Measure teacher, base and the trained students, and write the page."""
        candidates = ["teacher", "base", *(f"{name}={self.runs / name / 'best'}" for name in trained)]
        options = [option for candidate in candidates for option in ("--model", candidate)]
        evaluation = str(self.directory / "evaluation")
        longest = ["--max-new-tokens", str(self.kind.longest)]
        self.command(
            "fs-student", "eval", *options, *longest, "--timed", "8", "--requests", "10", "--output", evaluation
        )
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
            f"fs-teacher show {cache} {config}      # what the teacher knows about a sample",
            f"fs-teacher verify {cache}     # checks every byte of the cache",
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
