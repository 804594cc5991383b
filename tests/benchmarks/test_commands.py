"""Every benchmark still fits the code that it measures: it is imported here, and says how it is run."""

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()),
    "gpu.__main__",
    "gpu.carry",
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
