"""docs/python.md: its blocks are run one after the other, as they stand there, through `import firstsight` alone."""

import ast
import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from blocks import ROOT, blocks

import firstsight

BLOCKS = [block for block in blocks(ROOT / "docs" / "python.md") if block.language == "python"]


@pytest.fixture(scope="module")
def printed(start, tmp_path_factory):
    """What all blocks print, run one after the other; the working directory stays theirs."""
    place = tmp_path_factory.mktemp("python") / "work"
    shutil.copytree(start, place)
    names = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(place)
        for block in BLOCKS:
            exec(compile(block.text, str(block), "exec"), names)
        yield out.getvalue()


def test_the_blocks_run_and_print_what_their_comments_say(printed):
    for phrase in (
        "12 samples",
        "another sample: None",
        "0 faults in 2 rows",
        "2 samples",
        "seed=1,alpha=0.7 2 steps",
    ):
        assert phrase in printed
    said = [
        line.split("#", 1)[1].strip() for block in BLOCKS for line in block.text.splitlines() if "print(error)" in line
    ]
    assert len(said) == 1
    assert said[0] in printed


@pytest.mark.usefixtures("printed")
def test_rows_of_a_file_train_on_the_cache_of_the_file():
    """The run's own recipe does not hold them: it is continued with the rows, and refused without them."""
    rows = {
        name: [json.loads(line) for line in Path(f"data/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    }
    settings = ["training.output_dir=runs/given", "training.dataloader_num_workers=1"]
    recipe = firstsight.load_recipe("recipe.yaml", settings, **rows)
    assert firstsight.train(firstsight.prepare_training(recipe, progress=False)).steps == 2
    shutil.copy("runs/given/recipe.yaml", "again.yaml")  # its relative paths are those of the first recipe
    with pytest.raises(firstsight.DataError, match="train: 8 rows that Python gave are in no file; give them again"):
        firstsight.prepare_training(firstsight.load_recipe("again.yaml"), progress=False)
    again = firstsight.load_recipe("again.yaml", **rows)
    assert firstsight.train(firstsight.prepare_training(again, progress=False)).seconds == 0
    assert "train: row 1" in firstsight.sample_text(firstsight.find_sample(recipe, "cache.zarr"))


def test_the_blocks_need_nothing_but_the_interface():
    assert len(BLOCKS) >= 9
    used = set()
    for block in BLOCKS:
        assert not block.needs
        assert len([line for line in block.text.splitlines() if line.strip()]) <= 12, block
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert ast.unparse(node) == "import firstsight"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "firstsight":
                used.add(node.attr)
    functions = {name for name in firstsight.__all__ if name.islower() and not name.startswith("_")}
    assert functions <= used, f"not on the page: {functions - used}"
