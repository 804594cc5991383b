"""Which files in a directory were made by a run of ours: nothing else is ever removed, and no run begins among other files.

kept = remove_run(directory)                # for --overwrite
check_new(directory, recipe.directory)      # refuses a directory with other files
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from firstsight.errors import RecipeError
from phase2_student.runs.checkpoints import SEAL, checkpoints
from phase2_student.runs.lock import LOCK

_FILES = {
    "recipe.yaml",
    "run.json",
    "preprocessing.json",
    "run.log",
    "training_history.json",
    ".training_history.json.tmp",
    ".run.json.tmp",
    ".preprocessing.json.tmp",
    "report.html",
    "error.txt",
}
_MODELS = {f"{name}{kind}" for name in ("best", "final") for kind in ("", "-int8", "-nf4")}
_MODELS |= {f".{name}.{kind}" for name in ("best", "final", "publish") for kind in ("tmp", "old")}
_EVALUATION = re.compile(
    r"evaluation_\d{8}T\d{6}\.json|evaluation_summary\.txt|measured/[0-9a-f]{16}\.json|(measured/)?\.\S*\.json\.tmp"
)
_OF_OTHERS = {"evaluation", "publish", "runs", "report.html", "error.txt", LOCK}
"""Files that others write beside a run, some before it begins: eval, publish, a tracker, report, sweep, and the lock."""


def made_by_a_run(directory: Path) -> list[Path]:
    """The files that a run, and the commands about it, wrote into its directory; files of others are not among them."""
    if not (directory / "run.json").is_file():
        return [path for path in checkpoints(directory) if (path / SEAL).is_file()]  # nothing else can be recognised
    made = checkpoints(directory)
    made += [directory / name for name in sorted(_FILES) if (directory / name).is_file()]
    made += [
        directory / name
        for name in sorted(_MODELS)
        if name.startswith(".") or _is_model(directory / name)
        if (directory / name).is_dir()
    ]
    if _is_model(directory / "publish") and (directory / "publish" / "README.md").is_file():
        made.append(directory / "publish")
    return made + _of_evaluations(directory / "evaluation")


def _of_evaluations(directory: Path) -> list[Path]:
    """The directory, if evaluations wrote everything in it; else only their files."""
    files = sorted(path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())
    mine = [path for path in files if _EVALUATION.fullmatch(str(path.relative_to(directory)))]
    return [directory] if files and mine == files else mine


def remove_run(directory: Path) -> list[str]:
    """Remove what a run made; returns the names of what was left. `run.json` goes last, since it identifies the rest as a run's."""
    for path in sorted(made_by_a_run(directory), key=lambda path: path.name == "run.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    left = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    return sorted(left - {LOCK})


def check_new(directory: Path, recipe_directory: Path) -> None:
    """Check that a run may begin in a directory, which need not exist.

    Args:
        directory: the run's directory.
        recipe_directory: directory of the recipe.

    Raises:
        RecipeError: it is the recipe's own directory, or holds files that no run made.
    """
    check_apart(directory, recipe_directory)
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"training.output_dir: {directory} is a file; choose a directory for the run")
    foreign = sorted(path.name for path in directory.iterdir() if _is_foreign(path)) if directory.is_dir() else []
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RecipeError(
            f"training.output_dir: {directory} holds {foreign[0]}{more}, which no run made; choose a new directory, such as "
            f"{directory / 'run'}"
        )


def check_apart(directory: Path, recipe_directory: Path) -> None:
    """Raise RecipeError for the recipe's own directory, since a run writes a recipe.yaml."""
    if directory.resolve() == recipe_directory.resolve():
        raise RecipeError(
            f"training.output_dir: {directory} is the directory of the recipe, which the run would overwrite; choose another "
            "directory, such as runs/student"
        )


def _is_foreign(path: Path) -> bool:
    if path.name in _OF_OTHERS or path.name.startswith("."):
        return False
    if path.is_dir():  # a run of a sweep, or one that failed
        return not ((path / "run.json").is_file() or (path / "error.txt").is_file())
    return True


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))
