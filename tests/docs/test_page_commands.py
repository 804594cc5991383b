"""Every command of README and docs is run as it stands there, page by page, on a small random pair; what is marked is only parsed.

Each page begins in a copy of what the README's commands leave: recipe.yaml, data, caches, a trained student.
"""

import os
import shlex
import shutil

import pytest
from blocks import PAGES, ROOT, blocks
from click.testing import CliRunner

from firstsight.cli import main as firstsight
from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student

GROUPS = {"firstsight": firstsight, "fs-teacher": fs_teacher, "fs-student": fs_student}
SHORTER = {
    "firstsight data synth": ["--train", "8", "--validation", "4"],
    "fs-student sweep": [
        "--set",
        "training.max_steps=1",
        "--set",
        "training.eval_strategy=no",
    ],
    "fs-student eval": ["--limit", "2", "--max-new-tokens", "4", "--timed", "0"],
    "fs-student ask": ["--max-new-tokens", "4"],
}
"""What is added to a command so that it takes a moment; the last of an option counts."""
README = ROOT / "README.md"
OTHERS = [page for page in PAGES if page not in (README, ROOT / "docs" / "python.md")]


def runnable(page):
    return [block for block in blocks(page) if block.language in ("sh", "python") and not block.needs]


def run(command: str) -> None:
    """A command line in the working directory."""
    words = shlex.split(command, comments=True)
    if words[0] == "cp":
        assert (ROOT / words[1]).is_file()  # the recipe of the real pair; ours is of the small one
        return
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return
    added = next((more for name, more in SHORTER.items() if words[: len(name.split())] == name.split()), [])
    assert words[0] in GROUPS, f"{command}: how is this run?"
    done = CliRunner().invoke(GROUPS[words[0]], [*words[1:], *added], catch_exceptions=False)
    assert done.exit_code == 0, f"{command}\n{done.output}"


def run_page(page) -> None:
    for block in runnable(page):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "page"})
            continue
        for command in block.commands():
            run(command)


@pytest.fixture(scope="module")
def after_readme(start, tmp_path_factory):
    """What the README's commands leave."""
    place = tmp_path_factory.mktemp("readme") / "work"
    shutil.copytree(start, place)
    shutil.rmtree(place / "data")  # the README makes them
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_page(README)
    return place


def test_the_commands_of_the_readme_leave_what_they_say(after_readme):
    for name in (
        "cache.zarr",
        "exact.zarr",
        "derived.zarr",
        "runs/reference/best",
        "runs/reference/report.html",
        "own.yaml",
    ):
        assert (after_readme / name).exists(), name
    assert list((after_readme / "runs" / "reference" / "evaluation").glob("evaluation_*.json"))


@pytest.mark.parametrize(
    "page", [page for page in OTHERS if runnable(page)], ids=lambda page: os.path.relpath(page, ROOT)
)
def test_the_commands_of_a_page_run(page, after_readme, tmp_path, monkeypatch):
    shutil.copytree(after_readme, tmp_path / "work", symlinks=True)
    (tmp_path / "work" / "own.yaml").unlink()
    monkeypatch.chdir(tmp_path / "work")
    run_page(page)
