"""docs/python.md: its blocks are run one after the other, as they stand there, through `import firstsight` alone."""

import ast
import shutil

import pytest
from blocks import ROOT, blocks

import firstsight

BLOCKS = [block for block in blocks(ROOT / "docs" / "python.md") if block.language == "python"]


@pytest.fixture(scope="module")
def names(start, tmp_path_factory):
    """What the blocks so far have left; the working directory is theirs."""
    place = tmp_path_factory.mktemp("python") / "work"
    shutil.copytree(start, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield {"__name__": "page"}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_block_runs(names, block, capsys):
    exec(compile(block.text, str(block), "exec"), names)
    printed = capsys.readouterr().out
    for comment in [line.split("#", 1)[1].strip() for line in block.text.splitlines() if "print(error)" in line]:
        assert comment in printed


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
