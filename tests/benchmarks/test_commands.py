"""Every benchmark still fits the code that it measures: it is imported here, and says how it is run."""

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import smollm2
from benchmarks.pair import place_pair
from phase2_student.training.arguments import training_arguments

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()),
    "gpu.__main__",
    "gpu.carry",
    "suite.child",
    "suite.growth",
    "suite.peers",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_it_answers_help(name, monkeypatch):
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module.main, "params"):  # click's
        done = CliRunner().invoke(module.main, ["--help"])
        assert done.exit_code == 0, done.output
        assert "Usage" in done.output
    else:
        monkeypatch.setattr("sys.argv", [name, "--help"])
        with pytest.raises(SystemExit) as left:
            module.main()
        assert left.value.code == 0


def test_their_recipes_are_accepted(tmp_path):
    pair = place_pair(tmp_path, train=4, validation=2, epochs=1, batch=2, learning_rate=1e-3, models=None)
    for recipe in (pair, smollm2.write_recipe(tmp_path, 3)):
        assert training_arguments(recipe, progress=False).eval_strategy == "steps"
