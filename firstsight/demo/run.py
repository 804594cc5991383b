"""The demo: the whole path on the miniature pair, by the commands that a user would type: data, dump, two trainings, evaluation.

Leaves DIR/recipe.yaml, DIR/models, DIR/data, DIR/cache.zarr and DIR/runs, so that every command can be tried on them.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

import click

from firstsight.errors import FirstSightError

TRAIN_SAMPLES = 1_400
VALIDATION_SAMPLES = 420

RECIPE = """\
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
  top_k: 64
loss:
  temperature: 2.0
  alpha: 0.7
training:
  output_dir: runs/distilled
  num_train_epochs: 8
  per_device_train_batch_size: 16
  learning_rate: 1.0e-3
  weight_decay: 0.01
  lr_scheduler_type: cosine
  warmup_steps: 20
  save_only_model: false
  seed: 0
"""


def run_demo(directory: Path) -> None:
    """Run the demo in `directory`; a second run continues where the first one ended.

    Raises:
        FirstSightError: one of the commands failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _copy_models(directory / "models")
    recipe = directory / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(RECIPE, encoding="utf-8")
    config = ["--config", str(recipe)]
    runs = directory / "runs"
    begin = time.perf_counter()
    if not (directory / "data" / "validation.jsonl").exists():
        samples = ["--train", str(TRAIN_SAMPLES), "--validation", str(VALIDATION_SAMPLES), "--seed", "0"]
        _run("firstsight", "data", "synth", str(directory / "data"), *samples)
    _run("fs-teacher", "dump", *config)
    _run("fs-student", "train", *config, "--set", "loss.alpha=0", "--set", "training.output_dir=runs/hard")
    _run("fs-student", "train", *config)
    candidates = ["teacher", "base", f"hard={runs / 'hard' / 'best'}", f"distilled={runs / 'distilled' / 'best'}"]
    options = [option for candidate in candidates for option in ("--model", candidate)]
    evaluation, quick = str(directory / "evaluation"), ["--timed", "8", "--requests", "10"]
    _run("fs-student", "eval", *config, *options, *quick, "--output", evaluation)
    trained, page = [str(runs / name) for name in ("hard", "distilled")], directory / "report.html"
    _run("fs-student", "report", *trained, "--evaluation", evaluation, "--output", str(page))
    click.echo(
        "\nbase: the student before; hard: trained on the labels alone (alpha = 0); distilled: trained on the cache. "
        f"Same steps for both. {page} shows it with charts and images.\n"
        f"The demo took {time.perf_counter() - begin:.0f} s; try the commands above on {directory}."
    )


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
