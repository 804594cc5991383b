"""Only what a run made is ever removed, and no run begins on top of what others made."""

import os
from pathlib import Path

import pytest
from run_cases import run

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.runs import preprocessing, run_directory
from phase2_student.runs.checkpoints import seal
from phase2_student.runs.lock import LOCK, RunLock
from phase2_student.runs.ownership import check_new, made_by_a_run, remove_run
from phase2_student.training import train
from phase2_student.training.prepare import prepare

ONE_EPOCH = ["--no-progress", "--set", "training.max_steps=2"]


def put(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine", encoding="utf-8")


OURS = [
    "run.json",
    "run.log",
    "recipe.yaml",
    "training_history.json",
    "report.html",
    "best/config.json",
    "best/model.safetensors",
    "final/config.json",
    "final/model-00001-of-00002.safetensors",
    "best-int8/config.json",
    "best-int8/model.safetensors",
    ".best.tmp/model.safetensors",
    "checkpoint-7/model.safetensors",
    "evaluation/evaluation_20261126T051200.json",
    "evaluation/evaluation_summary.txt",
    "evaluation/measured/0123456789abcdef.json",
]
FOREIGN = [
    "notes.txt",
    "best-photos/a.jpg",
    "final-report/a.txt",
    "checkpoint-7.bak/model.safetensors",
    "checkpoint-old/x",
    "evaluation-of-mine/a.json",
    ".git/config",
]


def test_a_run_is_removed_and_the_rest_stays(tmp_path):
    put(tmp_path, *OURS, *FOREIGN, "publish/index.html")
    kept = remove_run(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([*FOREIGN, "publish/index.html"])
    assert kept == sorted({name.split("/")[0] for name in [*FOREIGN, "publish"]})


@pytest.mark.parametrize(
    "names",
    [
        ["evaluation/prices.csv"],
        ["evaluation/evaluation_20261126T051200.json", "evaluation/measured/notes.txt"],
        ["best/photo.jpg"],  # not a model
        ["final/thesis.pdf"],
        ["publish/README.md", "publish/site.html"],
        ["best-nf4/config.json"],
    ],
)
def test_a_directory_of_a_familiar_name_is_not_ours_for_that(tmp_path, names):
    put(tmp_path, "run.json", *names)
    remove_run(tmp_path)
    for name in names:
        assert (tmp_path / name).exists() == (not name.startswith("evaluation/evaluation_")), name


def test_without_a_run_nothing_is_removed_but_sealed_checkpoints(tmp_path):
    """A stock trainer writes checkpoint-N, best and final as well."""
    put(tmp_path, *(name for name in OURS if name != "run.json"), "checkpoint-9/model.safetensors")
    seal(tmp_path / "checkpoint-9")
    assert made_by_a_run(tmp_path) == [tmp_path / "checkpoint-9"]


def test_what_links_lead_to_stays(tmp_path):
    put(tmp_path / "elsewhere", "evaluation_20261126T051200.json", "config.json", "model.safetensors")
    put(tmp_path / "run", "run.json")
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "best")
    remove_run(tmp_path / "run")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["data/train.jsonl"], ["other.yaml"], ["cache.zarr/zarr.json"], ["model.safetensors"]]
)
def test_a_new_run_is_refused_among_foreign_files(tmp_path, names):
    put(tmp_path / "out", *names)
    with pytest.raises(
        RecipeError, match=f"out holds {names[0].split('/')[0]}, which no run made; choose a new directory"
    ):
        check_new(tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["evaluation/evaluation_20261126T051200.json"],  # of the base, before the training
        ["error.txt"],  # of a sweep
        ["temperature=1/run.json", "temperature=2/error.txt"],
        ["runs/events.out.tfevents.1"],
        [".nfs0001"],
    ],
)
def test_a_new_run_is_taken_beside_what_the_commands_leave(tmp_path, names):
    put(tmp_path / "out", *names)
    check_new(tmp_path / "out", tmp_path)


def test_a_file_is_no_directory(tmp_path):
    put(tmp_path, "out")
    with pytest.raises(RecipeError, match="out is a file"):
        check_new(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("output_dir", [".", "runs/..", "{world}"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_directory_of_the_recipe_is_refused_and_left_as_it_is(world, output_dir, overwrite):
    before = {path.name: path.read_bytes() for path in world.iterdir() if path.is_file()}
    setting = f"training.output_dir={output_dir.format(world=world)}"
    done = run("train", "--config", world / "recipe.yaml", *ONE_EPOCH, "--set", setting, *overwrite)
    assert done.exit_code == 2, done.output
    assert "is the directory of the recipe, which the run would overwrite" in done.output
    assert {path.name: path.read_bytes() for path in world.iterdir() if path.is_file()} == before


def test_overwrite_says_what_it_kept(world):
    command = ["train", "--config", world / "recipe.yaml", *ONE_EPOCH]
    assert run(*command).exit_code == 0
    put(world / "runs" / "a", "evaluation/prices.csv", "notes.txt")
    again = run(*command, "--set", "training.learning_rate=1e-4", "--overwrite")
    assert again.exit_code == 0, again.output
    assert "kept, because no run made it: evaluation, notes.txt" in again.stderr
    assert (world / "runs" / "a" / "evaluation" / "prices.csv").read_text() == "mine"
    put(world / "runs" / "b", "notes.txt")
    for more in ([], ["--overwrite"]):
        refused = run(*command, "--set", "training.output_dir=runs/b", *more)
        assert refused.exit_code == 2
        assert "holds notes.txt, which no run made" in refused.output


def test_a_token_in_the_recipe_of_an_older_run_is_masked(world):
    assert run("train", "--config", world / "recipe.yaml", *ONE_EPOCH).exit_code == 0
    recipe = world / "runs" / "a" / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "  hub_token: hf_aBcD1234aBcD1234aBcD\n", encoding="utf-8")
    page = world / "report.html"
    assert run("report", world / "runs" / "a", "--output", page).exit_code == 0
    folder = ["publish", "--config", world / "recipe.yaml", "--repo", "me/it", "--dry-run", "--no-evaluation"]
    assert run(*folder, "--output", world / "pub").exit_code == 0
    for path in (page, world / "pub" / "recipe.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "hf_aBcD" not in text
        assert "hub_token: &#39;***&#39;" in text or "hub_token: '***'" in text


class Killed(BaseException):
    """In the place of SIGKILL."""


def die(*_):
    raise Killed


@pytest.mark.parametrize("count", range(6))
def test_a_run_that_was_killed_while_it_began_can_begin_again(world, monkeypatch, count):
    """After any number of the files that it writes; the process that dies leaves its lock."""
    done = []

    def killing(write):
        def until_then(*args, **options):
            if len(done) == count:
                raise Killed
            done.append(args[0])
            return write(*args, **options)

        return until_then

    with monkeypatch.context() as patch:
        for module in (run_directory, preprocessing):
            patch.setattr(module, "write_json", killing(module.write_json))
        patch.setattr(Path, "write_text", killing(Path.write_text))
        patch.setattr(RunLock, "release", lambda lock: lock._released.set())
        patch.setattr(train, "_run", die)
        with pytest.raises(Killed):
            train.train(prepare(load_recipe(world / "recipe.yaml", ["training.max_steps=2"]), progress=False))
    if (world / "runs" / "a" / LOCK).exists():
        (world / "runs" / "a" / LOCK).unlink()  # of a process that is not dead here
    again = run("train", "--config", world / "recipe.yaml", *ONE_EPOCH)
    assert again.exit_code == 0, again.output
    assert (world / "runs" / "a" / "final").is_dir()


def test_a_removal_that_was_killed_is_finished_by_the_next(tmp_path, monkeypatch):
    put(tmp_path, *OURS, *FOREIGN)
    stock, removed = Path.unlink, []

    def unlink(path, *args, **options):
        if len(removed) == 3:
            raise Killed
        removed.append(path)
        stock(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            remove_run(tmp_path)
    assert (tmp_path / "run.json").exists()
    remove_run(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(FOREIGN)
