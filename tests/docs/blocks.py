"""The fenced blocks of README and docs.

    <!-- needs: gpu, slurm -->
    ```sh
    sbatch dump.sbatch recipe.yaml
    ```

A block says its language; `sh` and `python` are run by a test, unless the comment in front of them says what they need.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
)
NEEDS = re.compile(r"<!-- needs: ([\w., -]+) -->")


@dataclass(frozen=True)
class Block:
    """One of them."""

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Lines of a `sh` block, continued ones joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The blocks of a page, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        fence = re.match(r"\s*```(.*)", line)
        if fence is None:
            continue
        if start is None:
            start, language = number, fence[1].strip()
            continue
        assert not fence[1].strip(), f"{page.name}:{number + 1}: a block begins inside another one"
        before = next((each for each in reversed(lines[:start]) if each.strip()), "")
        needs = NEEDS.fullmatch(before.strip())
        found.append(
            Block(
                page=page.relative_to(ROOT).as_posix(),
                line=start + 1,
                language=language,
                text="\n".join(lines[start + 1 : number]) + "\n",
                needs=tuple(each.strip() for each in needs[1].split(",")) if needs else (),
            )
        )
        start = None
    assert start is None, f"{page.name}: the block of line {start} has no end"
    return tuple(found)
