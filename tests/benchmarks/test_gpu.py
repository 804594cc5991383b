"""The GPU benchmark in small, on a CPU: every part runs, and what it quantises is what the project loads."""

import json
import logging

import pytest
import torch
from click.testing import CliRunner
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.board import Board
from benchmarks.gpu.loss import BASE_DIVERGENCE
from benchmarks.gpu.models import build, quantize
from benchmarks.gpu.page import read_board
from benchmarks.gpu.step import CACHED, STOCK
from benchmarks.loss import KINDS
from firstsight.models.loading import load_config, load_teacher
from firstsight.recipe import TeacherSection
from phase2_student.loss.divergences import DIVERGENCES


@pytest.fixture
def _libraries_are_quiet():
    """The script silences libraries for good: here until the test ends."""
    levels = {name: logging.getLogger(name).level for name in ("bitsandbytes", "transformers")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("_libraries_are_quiet")
def test_the_whole_script_runs_in_small(tmp_path):
    done = CliRunner().invoke(main, ["--tiny", "--out", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"GPU", "torch", "transformers", "bitsandbytes"} <= set(found["facts"])
    rows = found["rows"]
    assert {row["part"] for row in rows} == {"loss", "step", "dump", "answers", "cost"}
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    assert skipped == ([] if torch.cuda.is_available() else ["flash-attn is not installed"])
    errors = {row["name"]: row for row in rows if row["name"].startswith("error")}
    assert errors["error, fp32 head"]["error of d head"] < 1e-5
    assert errors["error, bf16 head"]["error of d head"] < 1e-2
    assert next(row for row in rows if row["name"].startswith("outliers"))["with outliers"] == 0.5
    steps = [row for row in rows if row["part"] == "step" and "kd" in row]
    dumps = [row for row in rows if "idle share" in row]
    assert (len(steps), len(dumps)) == (6 + torch.cuda.is_available() * is_flash_attn_2_available(), 6)
    exact = {row["part"]: row for row in rows if "exact targets" in row["name"] and "Kahan" not in row["name"]}
    assert exact.keys() == {"loss", "step", "dump", "cost"}
    assert exact["dump"]["head, s"] > 0
    assert exact["dump"]["x top_k"] > 0
    tail = next(row for row in dumps if row["name"].endswith("tail targets"))
    assert min(tail["x top_k"], tail["first unit, s"], tail["directions, s"]) > 0
    divergences = [row for row in rows if row["name"].endswith(tuple(DIVERGENCES))]
    assert len(divergences) == len(KINDS) * len(DIVERGENCES)
    assert all(row["x forward KL"] > 0 for row in divergences if not row["name"].endswith(BASE_DIVERGENCE))
    assert exact["step"]["kd"] > 0
    assert exact["step"]["planned GB"] > next(row for row in rows if row["name"] == CACHED)["planned GB"]  # the head
    for row in [*steps, *dumps]:
        assert row["self-check, s"] > 0
    for row in rows:
        assert row["name"] in done.stdout


def test_a_part_that_is_not_known():
    done = CliRunner().invoke(main, ["--tiny", "--only", "loss,lost"])
    assert done.exit_code == 2
    assert "'lost' is not a part; the parts are loss, step" in done.output


def test_a_part_keeps_the_rows_of_the_others(tmp_path):
    out = tmp_path / "gpu.json"
    board = Board(60, out, {"GPU": "none"})
    board.fail("loss", "b", ValueError("no"))
    for part, ms in (("loss", 1.0), ("step", 2.0)):
        board.add(part, "a", {"ms": ms})
    again = Board(60, out, {"GPU": "none"})
    again.adopt(out)
    again.add("loss", "a", {"ms": 3.0})
    again.skip("step", "a", "no time: the old figures stay")
    again.add("loss", "b", {"ms": 4.0})
    assert [(row["part"], row["name"], row.get("ms")) for row in read_board(out).rows] == [
        ("loss", "b", 4.0), ("loss", "a", 3.0), ("step", "a", 2.0)
    ]  # fmt: skip
    assert (board.failed, again.failed) == (1, 0)
    with pytest.raises(ValueError, match="measured with GPU none, here it is H100"):
        Board(60, out, {"GPU": "H100"}).adopt(out)


def test_the_page_of_a_file(tmp_path):
    out, docs = tmp_path / "gpu.json", tmp_path / "docs"
    nothing = CliRunner().invoke(main, ["--report", "--out", str(out)])
    assert nothing.exit_code == 2
    assert "cannot be shown" in nothing.output
    board = Board(60, out, {"GPU": "none"})
    board.add("step", STOCK, {"s per step": 2.0, "peak GB": 40.0})
    board.add("step", CACHED, {"s per step": 3.0, "peak GB": 30.0})
    board.skip("step", "other", "no time")
    done = CliRunner().invoke(main, ["--report", "--out", str(out), "--docs", str(docs)])
    assert done.exit_code == 0, done.output
    text = (docs / "benchmarks.md").read_text()
    assert (
        "| a step on the cache | a stock fine-tuning step | **1.50 x the time** | once | 1 | 3.00 / 2.00 s | `gpu.step.time.cached` |"
        in text
    )
    assert "**0.750 x the memory**" in text
    assert "- step, other: not measured, no time" in text
    assert "gpu.dump" not in text
    assert (docs / "gpu.png").is_file()


def test_a_row_that_fails_is_a_row(tmp_path):
    board = Board(60, tmp_path / "rows.json", {"GPU": "none"})
    assert board.measure("loss", "broken", about=0, work=lambda: {"ms": 1 / 0}) is None
    assert board.measure("loss", "whole", about=0, work=lambda: {"ms": 2.5}) == {"ms": 2.5}
    assert board.measure("loss", "too long", about=100, work=lambda: {"ms": 1.0}) is None
    assert board.failed == 1
    assert board.find("loss", "broken") is None
    assert board.find("loss", "whole")["ms"] == 2.5
    first, second, third = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert first["failed"] == "ZeroDivisionError: division by zero"
    assert second["ms"] == 2.5
    assert third["skipped"].endswith("s left, takes about 100 s")
    assert "| broken | failed: ZeroDivisionError: division by zero |" in board.table()


def test_a_row_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.board._PATIENCE", 0.1)
    board = Board(60, None, {})

    def endless():
        while True:
            pass

    assert board.measure("loss", "endless", about=0, work=endless) is None
    assert board.rows[0]["skipped"].startswith("given up after 0 s")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_as_the_project_loads_it(models, kind):
    section = TeacherSection(model="teacher", quantization=kind, device_map="cpu")
    loaded = load_teacher(models / "teacher", section)
    made = build(load_config(models / "teacher", section), torch.bfloat16, torch.device("cpu"))
    plain = load_teacher(models / "teacher", section.model_copy(update={"quantization": "none"}))
    made.load_state_dict(plain.state_dict())
    quantize(made, kind)
    modules = [{name: type(part) for name, part in model.named_modules()} for model in (loaded, made)]
    assert modules[0] == modules[1]
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        expected, got = (model(input_ids=ids, use_cache=False).logits for model in (loaded, made))
    assert torch.equal(expected, got)
