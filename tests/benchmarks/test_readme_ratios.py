"""Every ratio of README's tables of costs is in the results that are checked in, and docs/benchmarks.md shows these.

A row names its results in a comment, in the order of its figures: `| a / b <!-- step.time.cached --> | 0.59 to 0.62 x the time |`.
`A to B x` is the spread of the turns, `A x` their median, each as far as its digits go.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.gpu.page as gpu
from benchmarks import regime_report
from benchmarks.__main__ import COMMAND, PAGE, PICTURE
from benchmarks.suite.page import page_text
from benchmarks.suite.result import Result, Suite, compared

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
FIGURE = re.compile(r"([\d.]+)(?: to ([\d.]+))? x the ([\w' ]+)")
NOUNS = {"time": ("s", "ms"), "memory": ("MB", "GB"), "head's memory": ("MB",), "size": ("bytes",)}


def rows(readme: str, heading: str = "What it costs") -> list[tuple[str, list[str], str]]:
    """Title, names of results and figures of each row of the table below a line."""
    table = readme.split(heading)[1].split("\n\n")[1]
    found = []
    for line in table.splitlines()[2:]:
        _, title, figures, _ = line.split("|")
        comment = re.search(r"<!-- (.*?) -->", title)
        found.append((title.split("<!--")[0].strip(), comment[1].split() if comment else [], figures.strip()))
    return found


def faults(readme: str, find: Callable[[str], Result | None], heading: str = "What it costs") -> list[str]:
    """What the table says that the results do not."""
    wrong = []
    for title, names, text in rows(readme, heading):
        figures = [FIGURE.fullmatch(part.strip()) for part in text.split(",")]
        if len(names) != len(figures) or not all(figures):
            wrong.append(f"{title}: {len(names)} results named for {text!r}")
            continue
        for name, (low, high, noun) in zip(names, (figure.groups() for figure in figures), strict=True):
            found = find(name)
            if found is None:
                wrong.append(f"{title}: there is no result {name}")
                continue
            expected = [found.low, found.high] if high else [found.median]
            given = [figure for figure in (low, high) if figure]
            if found.unit not in NOUNS.get(noun, ()) or any(
                f"{value:.{len(figure.partition('.')[2])}f}" != figure
                for value, figure in zip(expected, given, strict=True)
            ):
                wrong.append(f"{title}: {text!r}, but {name} is {found.shown} ({found.spread})")
    return wrong


def readme(*lines: str) -> str:
    return "\n".join(["# It", "", "What it costs, measured:", "", "| | |", "|---|---|", *lines, "", "More."])


@pytest.fixture
def suite():
    from test_suite import part_run

    results = [
        compared("step.time.cached", "a", "b", mine=[0.594, 0.612, 0.618], theirs=[1, 1, 1], unit="s"),
        compared("loss.memory.fused", "a", "b", mine=[0.3, 0.3], theirs=[1, 1], unit="MB"),
    ]
    return Suite(parts={"step": part_run(results=results)})


@pytest.mark.parametrize(
    "line",
    [
        "| a / b <!-- step.time.cached --> | 0.59 to 0.62 x the time |",
        "| a / b <!-- step.time.cached --> | 0.61 x the time |",
        "| a / b <!-- step.time.cached --> | 0.6 x the time |",
        "| a / b <!-- step.time.cached loss.memory.fused --> | 0.612 x the time, 0.30 x the memory |",
    ],
)
def test_a_figure_of_the_results(suite, line):
    assert faults(readme(line), suite.find) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("| a / b | 0.61 x the time |", "0 results named for"),
        ("| a / b <!-- step.time.lost --> | 0.61 x the time |", "no result step.time.lost"),
        ("| a / b <!-- step.time.cached --> | 0.62 x the time |", "but step.time.cached is 0.612 x the time"),
        ("| a / b <!-- step.time.cached --> | 0.60 to 0.62 x the time |", "0.594 to 0.618"),
        ("| a / b <!-- step.time.cached --> | 0.61 x the memory |", "but step.time.cached is"),
        ("| a / b <!-- step.time.cached --> | about 0.61 x the time |", "1 results named for"),
        ("| a / b <!-- step.time.cached --> | 0.61 x the time, 0.3 x the memory |", "1 results named for"),
    ],
)
def test_a_figure_that_is_not(suite, line, fault):
    (found,) = faults(readme(line), suite.find)
    assert fault in found


def test_every_row_of_the_readme_names_as_many_results_as_it_has_figures():
    found = rows((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) >= 6
    for title, names, figures in found:
        assert len(names) == len(figures.split(",")), title


def test_the_readme_says_what_was_measured():
    assert faults((ROOT / "README.md").read_text(encoding="utf-8"), Suite.read(RESULTS).find) == []


def test_the_page_is_that_of_the_results():
    suite = Suite.read(RESULTS)
    assert not any(run.quick for run in suite.parts.values())
    assert section(COMMAND) == page_text(suite, PICTURE).strip(), (
        "the page is older than the results: give make bench ARGS=--report"
    )
    assert (ROOT / "docs" / PICTURE).is_file()


def section(command: str) -> str:
    """What a command wrote into docs/benchmarks.md."""
    page = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    return page.split(f"<!-- {command}: begin -->\n")[1].split(f"\n<!-- {command}: end -->")[0]


def test_the_readme_says_what_a_gpu_took():
    found = {each.name: each for each in gpu.ratios(gpu.read_board(gpu.GPU_RESULTS))}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert faults(text, found.get, "At full size") == []
    assert len(rows(text, "At full size")) >= 5


def test_the_readme_says_what_the_regimes_gave():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paragraph = text.split("Over five seeds")[1].split("\n\n")[0]
    page = section(regime_report.COMMAND)
    figures = re.findall(r"[+-]?\d+\.\d+", paragraph)
    assert len(figures) >= 10
    assert [figure for figure in figures if figure not in page] == []


def test_the_page_shows_what_a_gpu_took():
    board = gpu.read_board(gpu.GPU_RESULTS)
    assert board.facts["tiny"] is False
    assert section(gpu.COMMAND) == gpu.page_text(board), (
        "the page is older than the results: give make bench-gpu ARGS=--report"
    )
    assert (ROOT / "docs" / gpu.PICTURE).is_file()
