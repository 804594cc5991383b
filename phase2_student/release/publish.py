"""Publish a student: prepare the folder for the hub, and upload it.

folder = prepare_folder(recipe, repo="me/student", output=Path("publish"), evaluation=None, license=None)
upload(folder.path, repo="me/student", private=True)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstsight.errors import DataError, ModelError
from firstsight.recipe import Recipe
from phase2_student.evaluation.files import read_evaluation
from phase2_student.evaluation.results import Evaluation, ModelResult
from phase2_student.runs.best import trained_student
from phase2_student.runs.files import copy_files, replace_directory, write_json
from phase2_student.runs.lineage import read_cache, without_directories
from phase2_student.runs.records import Run, read_runs

_CARD, _EVALUATION, _RECIPE = "README.md", "evaluation.json", "recipe.yaml"


@dataclass(frozen=True)
class Folder:
    """The files that are, or would be, uploaded."""

    path: Path
    files: tuple[tuple[str, int], ...]
    """Name and bytes of each file, sorted by name."""

    @property
    def bytes(self) -> int:
        """Total size of the files."""
        return sum(size for _, size in self.files)


def check_repo(repo: str) -> None:
    """Check the name of a repository. Raises ModelError if the hub would refuse it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not marked as exported

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelError(f"--repo {repo}: {' '.join(str(error).split())}") from None
    if "/" not in repo:
        raise ModelError(f"--repo {repo}: expected user/name, such as me/{repo}")


def check_token() -> None:
    """Check that there is a token for the hub. Raises ModelError if there is none."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ModelError("no token for the hub was found; run `hf auth login` or set HF_TOKEN; --dry-run needs none")


def prepare_folder(
    recipe: Recipe,
    *,
    repo: str,
    output: Path | None = None,
    evaluation: Path | None = None,
    evaluated: bool = True,
    license: str | None = None,
) -> Folder:
    """Write the folder of a run: the student, the card, the evaluation and the recipe.

    Args:
        recipe: its `training.output_dir` holds the run.
        repo: `user/name`, for the card.
        output: the folder; None: `publish` in the run's directory. Replaces what an earlier call wrote there.
        evaluation: a file of `fs-student eval` or a directory with evaluation files; None: the newest of the run.
        evaluated: False: publish without figures; the card says so.
        license: licence identifier of the hub, for the card.

    Raises:
        ModelError: no student was found, or the evaluation is missing or was made with other weights.
        DataError: the folder holds something else, or a file cannot be read.
    """
    from phase2_student.release.card import model_card

    best = trained_student(recipe.output_dir)
    if not (best / "config.json").is_file() or not any(best.glob("*.safetensors")):
        raise ModelError(f"{best}: no student found; run fs-student train with this recipe first")
    (run,) = read_runs([recipe.output_dir])
    found, student = _evaluation(run, evaluation) if evaluated else (None, None)
    path = output or recipe.output_dir / "publish"
    mine = {_CARD, _RECIPE, _EVALUATION} | {file.name for file in best.iterdir()}
    others = sorted(file.name for file in path.iterdir() if file.name not in mine) if path.is_dir() else []
    if others:
        raise DataError(
            f"{path}: holds {others[0]}, which does not belong to a student; choose an empty or new directory with --output"
        )
    cache, _ = read_cache(run)
    card = model_card(run, found, student, cache, repo=repo, license=license)

    def fill(scratch: Path) -> None:
        copy_files(best, scratch, leave_out={_CARD, _EVALUATION, _RECIPE})
        card.save(scratch / _CARD)
        (scratch / _RECIPE).write_text(
            yaml.safe_dump(_portable(run.recipe), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        if found is not None:
            write_json(scratch / _EVALUATION, found.to_json())

    replace_directory(path, fill)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return Folder(path=path, files=tuple((str(file.relative_to(path)), file.stat().st_size) for file in files))


def upload(folder: Path, *, repo: str, private: bool = False, endpoint: str | None = None) -> str:
    """Create the repository if it does not exist, and push the folder in one commit. Returns the address of the commit.

    Args:
        folder: from `prepare_folder`.
        repo: `user/name`.
        private: make a new repository private; an existing one is not changed.
        endpoint: URL of another hub; None: `HF_ENDPOINT`, else the public hub.

    Raises:
        ModelError: the hub refused the upload, or could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[
        0
    ]  # from the HTTP library that huggingface_hub uses: httpx or httpx2
    api = HfApi(endpoint=endpoint, library_name="firstsight")
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Student, card, evaluation and recipe"
        )
    except (http_error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{repo}: the upload failed ({reason}); the folder {folder} is complete; run the same command again"
        ) from None
    return str(commit.commit_url)


def _evaluation(run: Run, given: Path | None) -> tuple[Evaluation, ModelResult]:
    """The evaluation, and the run's student in it."""
    found = read_evaluation([run], given)
    if found is None:
        raise ModelError(
            f"{run.directory / 'evaluation'}: no evaluation of the student was found; run fs-student eval, pass one as --evaluation, or "
            "publish without figures with --no-evaluation"
        )
    from firstsight.models.loading import weights_digest

    best = trained_student(run.directory)
    weights = weights_digest(best)
    for model in found.models:
        if model.role == "student" and model.weights == weights:
            return found, model
    names = ", ".join(model.name for model in found.models)
    raise ModelError(
        f"{best}: no model in the evaluation of {found.created} ({names}) has these weights; run fs-student eval again"
    )


def _portable(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the directories of this machine: an absolute path becomes its last part."""
    return {
        section: {key: without_directories(value) for key, value in part.items()} for section, part in recipe.items()
    }
