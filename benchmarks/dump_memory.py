"""Peak host memory of a dump as the data grows: the same dump at 5,000 and at 500,000 samples.

    python -m benchmarks.dump_memory [--samples 5000 --samples 500000 --images 2000]

The teacher is a fake that looks up a hidden state for each token and counts the rows it is asked for, so that half a million
samples take minutes; everything else is the dump itself, from the JSONL file to the committed units and the closing summary. Each
size runs in its own process. The peak of the resident set after each step is printed, above that of the process without data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from benchmarks.machine import peak_mb
from firstsight.demo.miniature.build import (
    TEACHER_ROWS,
    build_student,
    build_teacher,
    build_tokenizer,
    save_pair_member,
)
from firstsight.demo.miniature.words import WORDS
from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.summary import summary_text
from storage.reader import open_cache

D = 16  # hidden size of the fake


class CountingBackbone:
    """Gives hidden states that depend only on the token id; counts rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._states = torch.randn(TEACHER_ROWS, D, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """[B, L] ids -> [B, L, D]."""
        self.rows += len(input_ids)
        return SimpleNamespace(last_hidden_state=self._states[input_ids])

    __call__ = forward


class CountingTeacher:
    """A backbone that counts, and a head."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(model_type="counting")
        self.base_model = CountingBackbone()
        self._head = torch.nn.Linear(D, TEACHER_ROWS, bias=False)

    def forward(self, **inputs: Any) -> Any:
        """Logits, as the self-check before the first batch asks for them."""
        return SimpleNamespace(logits=self._head(self.base_model(**inputs).last_hidden_state))

    __call__ = forward

    @property
    def rows(self) -> int:
        """Rows that went through the backbone, without the three of the self-check."""
        return self.base_model.rows - 3

    def get_output_embeddings(self) -> torch.nn.Linear:
        """The head."""
        return self._head


def write(directory: Path, samples: int, images: int) -> Path:
    """Write a pair, data and their recipe; each image is used by samples / images consecutive rows."""
    tokenizer = build_tokenizer()
    save_pair_member(build_teacher(tokenizer, 1), tokenizer, directory / "teacher")
    save_pair_member(build_student(tokenizer, 2), tokenizer, directory / "student")
    rng = np.random.default_rng(0)
    words = WORDS.split()
    data = directory / "data"
    data.mkdir()
    for index in range(images):
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(data / f"{index}.png")
    with (data / "train.jsonl").open("w") as train, (data / "validation.jsonl").open("w") as validation:
        for index in range(samples):
            question = f"{index} " + " ".join(rng.choice(words, rng.integers(2, 12)))
            answer = " ".join(rng.choice(words, rng.integers(1, 4)))
            row = {
                "id": f"s{index}",
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "images": [f"{index * images // samples}.png"] if images else [],
            }
            (validation if index % 50 == 49 else train).write(json.dumps(row) + "\n")
    recipe = {
        "teacher": {"model": "teacher", "quantization": "none", "dtype": "float32", "device_map": "cpu"},
        "student": {"model": "student"},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measure(config: Path) -> dict[str, float]:
    """Peak memory in MB after each step, and what was counted."""
    recipe = load_recipe(config)
    teacher = CountingTeacher()
    torch.set_num_threads(1)
    steps = {"start": peak_mb()}
    begin = time.monotonic()
    job = prepare_dump(recipe, progress=False)
    steps["prepare"] = peak_mb()
    summary = dump(job, model=teacher, progress=False)
    steps["dump"] = peak_mb()
    summary_text(recipe.cache_location, summary)
    steps["summary"] = peak_mb()
    samples, units = len(open_cache(recipe.cache_location)), summary.units
    return {**steps, "samples": samples, "rows": teacher.rows, "units": units, "seconds": time.monotonic() - begin}


@click.command()
@click.option("--samples", multiple=True, default=(5_000, 500_000), show_default=True)
@click.option("--images", default=2_000, show_default=True, help="Number of images; 0: questions without images.")
@click.option("--one", hidden=True, type=click.Path(path_type=Path))
def main(samples: tuple[int, ...], images: int, one: Path | None) -> None:
    """Peak host memory of a dump at several sizes of the data.

    Example: python -m benchmarks.dump_memory --samples 5000 --samples 50000
    """
    if one is not None:
        click.echo(json.dumps(measure(one)))
        return
    click.echo(
        f"{'samples':>10}{'units':>8}{'rows':>10}{'start':>9}{'prepare':>9}{'dump':>9}{'summary':>9}   MB{'s':>9}"
    )
    for count in samples:
        with tempfile.TemporaryDirectory() as name:
            config = write(Path(name), count, min(images, count))
            command = [sys.executable, "-m", "benchmarks.dump_memory", "--one", str(config)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cells = "".join(f"{found[step]:9,.0f}" for step in ("start", "prepare", "dump", "summary"))
        click.echo(f"{found['samples']:>10,}{found['units']:>8,}{found['rows']:>10,}{cells}{found['seconds']:14,.0f}")


if __name__ == "__main__":
    main()
