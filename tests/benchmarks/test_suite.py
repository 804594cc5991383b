"""`make bench`: its form of results, its page, its command; and every part in small."""

import importlib
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import benchmarks.__main__ as command
from benchmarks.suite.page import check_section, draw, page_text, write_section
from benchmarks.suite.parts import PARTS
from benchmarks.suite.result import PartRun, Result, Skipped, Suite, compared, growth, missing, number, text_table

RATIO = compared("step.time.cached", "ours", "theirs", mine=[1.0, 3.0, 2.5], theirs=[2.0, 3.0, 2.0], unit="s")


def part_run(part="step", quick=False, results=(RATIO,), skipped=()):
    return PartRun(
        part=part,
        date="2026-01-02",
        commit="abc",
        quick=quick,
        facts={"cores": "2"},
        load=0.5,
        seconds=12.0,
        peak_mb=345.6,
        results=list(results),
        skipped=list(skipped),
    )


def test_a_ratio_is_that_of_each_turn():
    assert (RATIO.median, RATIO.low, RATIO.high, RATIO.repeats) == (1.0, 0.5, 1.25, 3)
    assert (RATIO.value, RATIO.baseline_value) == (2.5, 2.0)
    assert RATIO.shown == "1.00 x the time"
    assert RATIO.spread == "0.500 to 1.25"
    once = compared("a.b", "ours", "theirs", mine=[100.0], theirs=[400.0], unit="bytes")
    assert (once.shown, once.spread) == ("0.250 x the size", "once")
    with pytest.raises(ValueError, match="zip"):
        compared("a.b", "ours", "theirs", mine=[1.0], theirs=[1.0, 2.0], unit="s")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_the_exponent_of_a_power(exponent):
    sizes = (20, 200, 2000)
    turns = [[scale * size**exponent for size in sizes] for scale in (1.0, 3.0)]
    found = growth("growth.time.plan", "planning", sizes, turns, "s")
    assert np.allclose([found.low, found.median, found.high], exponent)
    assert found.kind == "exponent"
    assert found.shown == f"n^{exponent:.2f} in time"
    assert found.baseline == "20 to 2,000 samples"


def test_a_baseline_of_nothing_is_no_ratio():
    found = compared("a.b", "ours", "theirs", mine=[1.0, 1.0], theirs=[2.0, 0.0], unit="MB")
    assert (found.name, found.reason) == ("a.b", "theirs: measured 0 MB")


def test_nothing_measurable_grows_not_at_all():
    assert growth("growth.time.open", "opening", (1, 10, 100), [[0.0, 0.0, 0.0]], "s").median == pytest.approx(0)


@pytest.mark.parametrize(
    "change",
    [
        {"low": 2.0},
        {"high": 0.1},
        {"repeats": 0},
        {"median": float("nan")},
        {"name": "Step"},
        {"unit": "hours"},
        {"extra": 1},
    ],
)
def test_a_result_that_cannot_be_is_refused(change):
    with pytest.raises(ValidationError):
        Result.model_validate(RATIO.model_dump() | change)


def test_numbers_have_three_digits_that_count():
    assert [number(value) for value in (0, 0.98123, 12.34, 1234.6, 0.000123)] == [
        "0",
        "0.981",
        "12.3",
        "1,235",
        "0.000123",
    ]


def test_what_is_not_installed_is_named():
    assert missing("json", "peers.time.json") == []
    (found,) = missing("a_package_that_nobody_has", "peers.time.it")
    assert found.reason.startswith("a_package_that_nobody_has is not installed; pip install")
    assert text_table([found]) == f"peers.time.it: skipped: {found.reason}"


def test_the_file_keeps_the_last_run_of_each_part(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    assert Suite.read(path).parts == {}
    suite = Suite().with_part(part_run("step"), list(PARTS)).with_part(part_run("store", results=[]), list(PARTS))
    suite.write(path)
    assert Suite.read(path) == suite
    assert list(suite.parts) == ["store", "step"]  # the order of the suite
    assert suite.find("step.time.cached") == RATIO
    assert suite.find("step.time.other") is None
    again = suite.with_part(part_run("step", results=[]), list(PARTS))
    assert again.find("step.time.cached") is None


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "docs" / "page.md"
    write_section(page, "make it", "the old text")
    write_section(page, "make other", "another")
    page.write_text(page.read_text() + "\nBy hand.\n")
    write_section(page, "make it", "second\n\nlines")
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert "<!-- make it: begin -->\nsecond\n\nlines\n<!-- make it: end -->" in text
    assert "another" in text
    assert text.endswith("\nBy hand.\n")
    assert "the old text" not in text


@pytest.mark.parametrize(
    "text",
    [
        "<!-- make it: begin -->",
        "<!-- make it: end -->",
        "<!-- make it: end --> <!-- make it: begin -->",
        "<!-- make it: begin --> <!-- make it: end --> <!-- make it: end -->",
    ],
)
def test_a_page_whose_marks_are_damaged_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    for work in (lambda: check_section(page, "make it"), lambda: write_section(page, "make it", "new")):
        with pytest.raises(ValueError, match=r"page\.md: needs <!-- make it: begin --> once"):
            work()
    assert page.read_text() == text


def test_the_page_has_every_result(tmp_path):
    skipped = Skipped(name="peers.time.trl", reason="trl is not installed")
    suite = Suite(parts={"step": part_run(), "peers": part_run("peers", results=[], skipped=[skipped])})
    text = page_text(suite, "benchmarks.png")
    assert "| ours | theirs | **1.00 x the time** | 0.500 to 1.25 | 3 | 2.50 / 2.00 s | `step.time.cached` |" in text
    assert "- `peers.time.trl`: not measured, trl is not installed" in text
    assert text.count("Measured on: cores 2.") == 1
    assert "mean nothing" not in text
    assert "mean nothing" in page_text(Suite(parts={"step": part_run(quick=True)}), "benchmarks.png")
    for each in (suite, Suite()):
        draw(each, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def run(tmp_path, *options):
    return CliRunner().invoke(
        command.main, ["--results", str(tmp_path / "bench.json"), "--docs", str(tmp_path), *options]
    )


@pytest.fixture
def parts(monkeypatch):
    """Every part gives a result at once; `dump` fails."""
    ran = []

    def run_part(name, *, quick):
        ran.append(name)
        if name == "dump":
            raise command.PartFailed("exit code 1\nMemoryError: no")
        return part_run(name, quick, [RATIO.model_copy(update={"name": f"{name}.time.it"})])

    monkeypatch.setattr(command, "run_part", run_part)
    return ran


def test_a_part_that_fails_is_said_and_the_next_ones_run(tmp_path, parts):
    done = run(tmp_path)
    assert done.exit_code == 1
    assert parts == list(PARTS)
    assert "dump: exit code 1\nMemoryError: no" in done.output
    assert done.output.rstrip().endswith("failed: dump")
    found = json.loads((tmp_path / "bench.json").read_text())["parts"]
    assert list(found) == [name for name in PARTS if name != "dump"]
    assert "`sweep.time.it`" in (tmp_path / "benchmarks.md").read_text()


def test_one_part_leaves_the_others_as_they_are(tmp_path, parts):
    assert run(tmp_path, "--only", "step", "--only", "store").exit_code == 0
    assert run(tmp_path, "--only", "loss").exit_code == 0
    assert parts == ["store", "step", "loss"]
    assert list(json.loads((tmp_path / "bench.json").read_text())["parts"]) == ["store", "loss", "step"]


def test_sizes_of_a_test_are_never_beside_real_ones(tmp_path, parts):
    assert run(tmp_path, "--only", "step").exit_code == 0
    done = run(tmp_path, "--quick")
    assert done.exit_code == 2
    assert "holds results of real sizes; give another file with --results" in done.output
    assert parts == ["step"]


@pytest.mark.parametrize("content", ["", "[]", '{"parts": {"step": {"part": "step"}}}', '{"rows": []}'])
def test_a_file_of_another_kind_is_refused_before_anything_is_measured(tmp_path, parts, content):
    (tmp_path / "bench.json").write_text(content)
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "not a file of results" in done.output
    assert parts == []


def test_a_damaged_page_is_refused_before_anything_is_measured(tmp_path, parts):
    (tmp_path / "benchmarks.md").write_text("<!-- make bench: begin -->")
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "<!-- make bench: end --> once after it" in done.output
    assert parts == []


def test_a_part_that_is_not_known(tmp_path, parts):
    done = run(tmp_path, "--only", "lost")
    assert done.exit_code == 2
    assert "'lost' is not one of" in done.output
    assert parts == []


def test_a_part_runs_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(command, "HEARTBEAT", 0.05)
    found = command.run_part("store", quick=True)
    assert found.quick
    assert found.peak_mb > 50
    assert found.facts["torch"] != "missing"
    assert {each.name for each in found.results} >= {"store.size.plain", "store.write.zarr", "store.size.exact"}


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(command, "ROOT", command.ROOT / "docs")  # there is no module of ours
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(command.PartFailed, match=r"exit code 1\n(.*\n)*.*No module named"):
        command.run_part("store", quick=True)


@pytest.mark.parametrize("part", [name for name in PARTS if name != "store"])
def test_every_part_measures_in_small(part):
    outcomes = importlib.import_module(PARTS[part].module).results(quick=True)
    names = [each.name for each in outcomes]
    assert len(set(names)) == len(names) > 0
    assert all(name.startswith(f"{part}.") for name in names)
    results = [each for each in outcomes if isinstance(each, Result)]
    assert results
    assert all(each.value > 0 for each in results if each.unit != "MB")
    for each in outcomes:
        if isinstance(each, Skipped):
            assert re.search("is not installed|measured 0 MB", each.reason)
