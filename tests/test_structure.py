"""The rooms: imports point one way, `--help` is light, every command shows an example, shipped recipes parse."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from firstsight.recipe import load_recipe

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "storage": {"storage"},
    "firstsight": {"firstsight", "storage"},
    "phase1_teacher": {"phase1_teacher", "firstsight", "storage"},
    "phase2_student": {"phase2_student", "firstsight", "storage"},
}
MODELS = {"torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "peft"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & set(ALLOWED)
        assert ours <= ALLOWED[room], f"{path} imports {ours - ALLOWED[room]}"


def test_storage_knows_nothing_of_models():
    for path in (ROOT / "storage").rglob("*.py"):
        assert not imported(path) & MODELS, path


def test_no_utils():
    assert not [path for room in ALLOWED for path in (ROOT / room).rglob("utils.py")]


@pytest.mark.parametrize("module", ["firstsight.cli", "phase1_teacher.cli", "phase2_student.cli"])
def test_help_imports_no_torch(module):
    code = (
        f"import sys; from {module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'zarr', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage" in out
    assert not {"torch", "transformers", "matplotlib"} & set(ast.literal_eval(out.split("HEAVY ")[1]))


def test_every_command_has_an_example_and_the_reference_is_current():
    reference = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    for root, group in reference["GROUPS"].items():
        for name, command in reference["commands"](root, group):
            assert "Example:" in (command.help or ""), f"{name} has no example in its help"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference["page"](), "run make docs"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_parse(path):
    load_recipe(path)
