"""The commands as a user types them, in processes of their own: data, dump, train without the teacher, eval."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from phase1_teacher.cli import main as teacher
from storage.reader import open_cache

RECIPE = {
    "teacher": {"model": "models/teacher", "dtype": "float32"},
    "student": {"model": "models/student"},
    "data": {"root": "data", "max_length": 512},
    "cache": {"path": "cache.zarr", "top_k": 32, "unit_positions": 128},
    "training": {
        "output_dir": "runs/a",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
    },
}


def run(directory: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command)
    return subprocess.run(
        [program, *arguments],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def done(directory: Path, command: str, *arguments: str) -> str:
    result = run(directory, command, *arguments, "--no-progress")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory, models) -> Path:
    """Data, a recipe and a cache."""
    directory = tmp_path_factory.mktemp("end_to_end")
    shutil.copytree(models, directory / "models")
    (directory / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    done(directory, "firstsight", "data", "synth", "data", "--train", "14", "--validation", "7")
    out = done(directory, "fs-teacher", "dump", "--config", "recipe.yaml")
    assert "21 samples" in out
    for T in (1, 2):
        assert f"T = {T}: stored 0." in out
    return directory


def test_a_second_dump_does_nothing_and_says_so(place):
    before = open_cache(place / "cache.zarr").digest
    out = done(place, "fs-teacher", "dump", "--config", "recipe.yaml")
    assert out.startswith("Nothing to do")
    assert open_cache(place / "cache.zarr").digest == before


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("cache.top_k=16", "top_k"),
        ("data.system_prompt=Answer briefly.", "prompt"),
        ("teacher.quantization=none", "quantization"),
        ("teacher.model=models/other", "weights"),
    ],
)
def test_another_spec_is_refused_with_the_difference(place, override, difference):
    if not (place / "models" / "other").exists():
        other = shutil.copytree(place / "models" / "teacher", place / "models" / "other")
        weights = bytearray((other / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (other / "model.safetensors").write_bytes(weights)
    command = ["dump", "--config", str(place / "recipe.yaml"), "--set", override]
    result = CliRunner().invoke(teacher, command)
    assert result.exit_code == 2, (result.output, result.exception)
    assert difference in result.stderr
    assert "Traceback" not in result.stderr


def test_training_and_evaluation_with_the_teacher_moved_away(place):
    (place / "models" / "teacher").rename(place / "away")
    try:
        done(place, "fs-student", "train", "--config", "recipe.yaml")
        few = ("--max-new-tokens", "8", "--timed", "4", "--requests", "2")
        out = done(
            place, "fs-student", "eval", "--config", "recipe.yaml", "--model", "base", "--model", "student", *few
        )
    finally:
        (place / "away").rename(place / "models" / "teacher")
    run_dir = place / "runs" / "a"
    history = json.loads((run_dir / "training_history.json").read_text())
    assert len(history) == 2
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["loss"]["alpha"] == 0.7
    for name in ("best", "final"):
        config = json.loads((run_dir / name / "config.json").read_text())
        assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
        assert config["dtype"] == "bfloat16"
    assert "exact match" in out
    assert list((run_dir / "evaluation").glob("evaluation_*.json"))

    # what was measured is shown and shipped, no teacher needed
    shown = run(place, "fs-student", "report", "runs/a")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "<svg" in (run_dir / "report.html").read_text()
    shipped = run(place, "fs-student", "publish", "--config", "recipe.yaml", "--repo", "me/student", "--dry-run")
    assert shipped.returncode == 0, shipped.stderr
    card = (run_dir / "publish" / "README.md").read_text()
    assert open_cache(place / "cache.zarr").digest in card
    assert "exact_match" in card
