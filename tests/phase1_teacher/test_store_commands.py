"""fs-teacher status, verify, gc: what they print, and their exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import time

import click
import numpy as np
import pytest
from click.testing import CliRunner

from firstsight.console import Commands
from phase1_teacher.store_commands import _rate, gc, status, verify
from storage.head.content import HeadContent, pack_tokens
from storage.maintenance.rate import DumpRate
from storage.plan import PlannedSample
from storage.targets import ExactSample, ExactTargets, SampleTargets, Targets
from storage.writer import create_cache

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]


@click.group(cls=Commands)
def teacher():
    pass


for command in (status, verify, gc):
    teacher.add_command(command)


@pytest.fixture
def location(tmp_path):
    """Two of three units committed, one sample skipped."""
    spec = {
        "top_k": 2,
        "temperatures": [1, 2],
        "vocabulary_size": 9,
        "shared_ids": [[0, 9]],
        "teacher": {"dtype": "fp32"},
    }
    writer = create_cache(tmp_path / "cache", spec)
    writer.plan([PlannedSample(key, 3) for key in KEYS], unit_positions=6)
    targets = Targets(
        ids=np.array([[1, 2]] * 3, np.uint32),
        logprobs=np.array([[-0.1, -3]] * 3, np.float32),
        tail=np.array([[-3, -1]] * 3, np.float32),
        target_ids=np.array([1, 2, 1], np.uint32),
        target_logprobs=np.array([-0.1, -3, -0.1], np.float32),
        soft=np.array([True, True, False]),
    )
    for unit in writer.pending()[:2]:
        with writer.unit(unit) as out:
            for key in unit.keys:
                if key == KEYS[3]:
                    out.skip(key, "the image is broken")
                else:
                    out.append(SampleTargets(key=key, hard=True, targets=targets))
            out.statistics["mass_T1"] = 1.5
    return tmp_path / "cache"


def _run(*arguments):
    result = CliRunner().invoke(teacher, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_status(location):
    code, text = _run("status", location)
    assert code == 0
    for part in (
        "2 of 3 committed (66.7%)",
        "3 of 6 stored, 1 skipped",
        "9 answer positions, 6 with soft targets",
        "bytes per position",
        "id_token",
        "not committed: 000000-000002",
        f"skipped {KEYS[3]}: the image is broken",
        'teacher.dtype: "fp32"',
        "mass_T1         3",
    ):
        assert part in text
    code, text = _run("status", location, "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["pending"] == ["000000-000002"]
    assert facts["positions"] == 9
    assert facts["skipped"] == {KEYS[3]: "the image is broken"}
    assert sum(facts["field_bits"].values()) == pytest.approx(8 * facts["bytes_per_position"])


def test_verify_of_an_unfinished_cache(location):
    code, text = _run("verify", location)
    assert code == 1
    assert "MISSING 1 planned unit has no manifest: 000000-000002" in text
    code, text = _run("verify", location, "--partial")
    assert code == 0
    assert "2 units, 3 samples, 9 positions" in text
    assert "all good" in text


def test_verify_names_unit_and_array(location):
    for array in ("gap", "tail"):
        (chunk,) = location.glob(f"units/000000-000001.*/{array}/c.0.0")
        data = bytearray(chunk.read_bytes())
        data[-9] ^= 16
        chunk.write_bytes(bytes(data))
    code, text = _run("verify", location, "--partial")
    assert code == 1
    assert "BAD unit 000000-000001, array gap: " in text
    assert "BAD unit 000000-000001, array tail: " in text
    assert "000000-000000" not in text.replace("000000-000000.json", "")
    code, text = _run("verify", location, "--json")
    facts = json.loads(text)
    assert code == 1
    assert not facts["ok"]
    assert [(problem["unit"], problem["array"]) for problem in facts["problems"]] == [
        ("000000-000001", "gap"),
        ("000000-000001", "tail"),
    ]


def test_gc(location):
    orphan = location / "units" / "000000-000002.20200101T000000Z-0123456789abcdef"
    orphan.mkdir()
    (orphan / "zarr.json").write_text("12345")
    code, text = _run("gc", location, "--dry-run")
    assert code == 0
    assert f"would remove units/{orphan.name} (5 bytes): never committed" in text
    code, text = _run("gc", location, "--json")
    assert code == 0
    assert json.loads(text)["bytes"] == 5
    assert not orphan.exists()
    assert _run("gc", location) == (0, "removed 0 objects, 0 bytes\n")


@pytest.mark.parametrize("name", ["status", "verify", "gc"])
def test_no_cache_is_one_line_and_exit_code_2(tmp_path, name):
    code, text = _run(name, tmp_path / "missing")
    assert code == 2
    assert text.count("\n") == 1
    assert "no cache at" in text


@pytest.mark.parametrize("name", ["status", "verify", "gc"])
def test_help_has_an_example(name):
    code, text = _run(name, "--help")
    assert code == 0
    assert f"Example: fs-teacher {name} cache.zarr" in text


@pytest.fixture
def exact(tmp_path):
    """A cache of kind exact, one unit."""
    spec = {
        "format_version": 2,
        "targets": "exact",
        "hidden_size": 3,
        "state_dtype": "float16",
        "head": {"rows": 9, "dtype": "float16", "bias": False},
    }
    writer = create_cache(tmp_path / "exact", spec)
    tokens = pack_tokens({0: (b"a", False), 8: (b"<end>", True)}, 9)
    writer.write_head(HeadContent(arrays={"weight": np.zeros((9, 3), np.uint16), **tokens}))
    writer.plan([PlannedSample(key, 4) for key in KEYS])
    (unit,) = writer.pending()
    with writer.unit(unit) as out:
        for key in KEYS:
            targets = ExactTargets(target_ids=np.arange(4, dtype=np.uint32), states=np.zeros((4, 3), np.uint16))
            out.append(ExactSample(key=key, hard=True, targets=targets))
    return tmp_path / "exact"


def test_an_exact_cache(exact):
    shown = CliRunner().invoke(teacher, ["status", str(exact)])
    assert shown.exit_code == 0
    assert "samples    6 of 6 stored" in shown.output
    assert "once for the whole cache" in shown.output
    assert "state_high" in shown.output
    facts = json.loads(CliRunner().invoke(teacher, ["status", str(exact), "--json"]).output)
    assert (facts["kind"], facts["positions"], facts["head_bytes"] > 0) == ("exact", 24, True)
    assert CliRunner().invoke(teacher, ["verify", str(exact)]).exit_code == 0
    assert "removed 0 objects" in CliRunner().invoke(teacher, ["gc", str(exact)]).output
    (exact / "head" / "arrays" / "weight" / "c.0.0").unlink()
    found = CliRunner().invoke(teacher, ["verify", str(exact)])
    assert found.exit_code == 1
    assert "BAD cache, array weight" in found.output


def test_status_tells_the_rate_of_living_workers(location, monkeypatch):
    """From the manifests alone: the third unit is missing."""
    _, before = _run("status", location)
    assert re.search(
        r"  rate       (not known yet|\S+ samples/s by about 1 worker, ETA \S+); the last unit was committed 0:00:\d\d ago",
        before,
    )
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    assert "no worker seems to be at work: the last unit was committed 1:00:" in _run("status", location)[1]
    found = json.loads(_run("status", "--json", location)[1])
    assert found["rate"]["workers"] == 0
    assert found["rate"]["since_commit"] == pytest.approx(3600, abs=60)


def test_the_rate_in_words():
    words = _rate(DumpRate(samples_per_second=12.345, workers=8, seconds_left=3725.0, since_commit=7.2))
    assert words == "12.3 samples/s by about 8 workers, ETA 1:02:05; the last unit was committed 0:00:07 ago"
