"""The rooms: imports point one way and form a tree, files and folders stay small, `--help` is light."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import INTERFACE, PACKAGES, ROOT, below, circle, folders, imports_of, module_files, module_graph

from firstsight.recipe import load_recipe

# which packages a package may import
ALLOWED = {
    "storage": {"storage"},
    "firstsight": {"firstsight", "storage"},
    "phase1_teacher": {"phase1_teacher", "firstsight", "storage"},
    "phase2_student": {"phase2_student", "firstsight", "storage"},
}
# the folders of each package: each may import those before it
ROOMS = {
    "storage": ("store", "format", "units", "head", "maintenance"),
    "firstsight": ("data", "recipe", "families", "models", "prompting", "demo"),
    "phase1_teacher": ("planning", "forward", "writing"),
    "phase2_student": ("runs", "loss", "data", "training", "planning", "evaluation", "report", "release"),
}
MODELS = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "peft"}
HEAVY = {"torch", "transformers", "zarr", "matplotlib", "PIL"}
MAX_LINES = 400
MAX_MODULES = 15
TEXTS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def roots(path: Path) -> set[str]:
    return {each.module.split(".")[0] for each in imports_of(path)}


def python_files(*directories: str) -> list[Path]:
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    files = python_files(package)
    assert files
    for path in files:
        ours = roots(path) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("package", ["storage", "firstsight"])
def test_only_the_public_interface_names_the_phases(package):
    """`firstsight/__init__.py` imports them by name, when one of their functions is first used."""
    for path in python_files(package):
        if path == INTERFACE:
            continue
        code = {node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node)} - set(docstrings(path))
        assert not [text for text in code if re.match(r"phase[12]_\w+[.:]", text)], path


def test_storage_knows_nothing_of_models():
    for path in python_files("storage"):
        assert not roots(path) & MODELS, path


def test_no_module_is_in_a_circle_of_imports():
    graph = module_graph()
    assert len(graph) > 100
    assert not circle(graph)


@pytest.mark.parametrize("folder", folders(module_graph()))
def test_what_lies_in_a_folder_is_in_no_circle_of_imports(folder):
    """Modules and folders side by side; a folder counts as a whole."""
    assert not circle(below(module_graph(), folder))


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_the_rooms_before_it(package):
    graph = below(module_graph(), package)
    rooms = [f"{package}.{room}" for room in ROOMS[package]]
    assert set(rooms) == {name for name in graph if (ROOT / name.replace(".", "/")).is_dir()}
    for place, room in enumerate(rooms):
        assert not graph[room] & set(rooms[place:]), f"{room} imports {graph[room] & set(rooms[place:])}"


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("folder", PACKAGES + tuple(name for name in folders(module_graph()) if "." in name))
def test_a_folder_holds_few_modules(folder):
    modules = sorted(path.name for path in (ROOT / folder.replace(".", "/")).glob("*.py"))
    assert "__init__.py" in modules
    assert len(modules) <= MAX_MODULES, modules


def test_files_are_short():
    files = python_files(*PACKAGES, "tests", "benchmarks", "docs")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_utils():
    assert not [path for path in python_files(*PACKAGES) if path.name in ("utils.py", "helpers.py", "common.py")]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def docstrings(path: Path) -> list[str]:
    """Every docstring of a file, those of fields included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, TEXTS))
    return [node.value.value for body in bodies for node in body if isinstance(node, ast.Expr) and is_text(node.value)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_with_of(package):
    found = [f"{path}: {text}" for path in python_files(package) for text in docstrings(path) if text.startswith("Of ")]
    assert found == []


def test_every_package_says_what_it_is_for():
    for module, path in module_files().items():
        assert docstrings(path), f"{module} has no docstring"


def test_nobody_asks_which_store_it_is():
    """What differs from one store to another is in the interface."""
    asking = re.compile(r"isinstance\([^()]*(Local|Object)(Store|Place)")
    assert [path for path in python_files(*PACKAGES, "tests", "benchmarks") if asking.search(path.read_text())] == []


@pytest.mark.parametrize("module", ["firstsight.cli", "phase1_teacher.cli", "phase2_student.cli"])
def test_help_imports_no_torch(module):
    code = (
        f"import sys; from {module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage" in out
    assert ast.literal_eval(out.split("HEAVY ")[1]) == []


def test_every_command_has_an_example_and_the_reference_is_current():
    reference = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    for root, group in reference["GROUPS"].items():
        for name, command in reference["commands"](root, group):
            assert "Example:" in (command.help or ""), f"{name} has no example in its help"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference["page"](), "run make docs"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_parse(path):
    load_recipe(path)
