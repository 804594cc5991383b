"""docs/FORMAT.md and the code state one truth: arrays, attributes, limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from storage_cases import spec_of_kind

from storage.canonical import canonical_json
from storage.format import VERSIONS
from storage.format.base import MAX_UNIT_SAMPLES, MAX_UNIT_VALUES
from storage.format.head_table import CHUNK_BYTES, EXACT_ARRAYS, MAX_TOKEN_BYTES, TAIL_ARRAYS
from storage.format.layout import MAX_NODES, MAX_TOP_K, MAX_VOCABULARY
from storage.format.v1 import arrays, checks, values
from storage.format.v2.exact import Exact2
from storage.format.v2.layout import MAX_HIDDEN_SIZE, MAX_TAIL_RANK, STATE_CHUNK
from storage.head.document import FIXED, HEAD_LIMIT
from storage.plan import MAX_PLAN_SAMPLES, PLAN_LIMIT, PLAN_SAMPLES
from storage.spec import ROOT_LIMIT, VERSION_2_FIELDS
from storage.units.manifest import MANIFEST_LIMIT
from storage.writer import ATTEMPT_SECONDS, MAX_REASON

PAGE = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next heading of its kind or of a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,2}} |^\1 |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[2]


def number(text: str) -> int:
    """A number as the page writes it: 2^24, 100,000."""
    base, _, exponent = text.replace(",", "").partition("^")
    return int(base) ** int(exponent or 1)


def rows_of(title: str) -> list[list[str]]:
    """The rows of the table of arrays in a section."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def row_of(array, *kind: str) -> list[str]:
    axes = ", ".join(f"{axis.name.replace('_', ' ')} {axis.symbol}".strip() for axis in array.axes)
    return [f"`{array.name}`", *kind, " or ".join(array.dtypes), axes, array.meaning]


def test_arrays():
    table = VERSIONS[1].table.arrays
    assert rows_of("Units") == [row_of(array) for array in table.values()]
    assert all(array.chunk is None for array in table.values())
    assert "Every array has exactly one chunk" in section("Units")


def test_attributes():
    text = section("Units").replace("\n", " ")
    named = re.search(r"attributes of the unit's group are (.*?)\. ", text)[1]
    assert re.findall(r"`(\w+)`", named) == list(VERSIONS[1].table.attributes)
    assert f"`value_step` (writers of this version: {arrays.VALUE_STEP * 64:g}/64 nat)" in named
    assert f"`tail_step` (1/{1 / arrays.TAIL_STEP:g} nat)" in named
    assert f"`tail_origin` ({arrays.TAIL_ORIGIN:g} nats)" in named
    direct = VERSIONS[1].table.attributes["direct"]
    assert f"`direct` ({direct.low} to {direct.high})" in named
    for attribute in VERSIONS[1].table.attributes.values():
        assert attribute.allows(direct.high if attribute.whole else 1.0)
        for impossible in (None, True, "1", -1, float("nan"), 1000, float("inf")):
            assert not attribute.allows(impossible)


LIMITS = {
    r"([\d^,]+) stored entries \(Q times the larger of K and n\)": MAX_UNIT_VALUES,
    r"([\d^,]+) positions": MAX_UNIT_VALUES,
    r"([\d^,]+) samples per unit": MAX_UNIT_SAMPLES,
    r"([\d^,]+) samples per plan": MAX_PLAN_SAMPLES,
    r"([\d^,]+) MiB per JSON document": PLAN_LIMIT // 2**20,
    r"([\d^,]+) nodes": MAX_NODES,
    r"([\d^,]+) characters per reason": MAX_REASON,
    r"from -([\d^,]+) `value_step` to 0": (values.MAX_STEPS + 1) // 2,
    r"those of targets from -([\d^,]+)": -int(checks.LOWEST),
}


@pytest.mark.parametrize("pattern", LIMITS)
def test_limits(pattern):
    found = re.findall(pattern, section("Limits").replace("\n", " "))
    assert list(map(number, found)) == [LIMITS[pattern]]


def test_every_limit_is_compared():
    text = section("Limits").replace("\n", " ")
    for pattern in LIMITS:
        text = re.sub(pattern, "", text)
    assert not re.search(r"\d{2}", text), text


def test_limits_elsewhere_on_the_page():
    assert PLAN_LIMIT == MANIFEST_LIMIT == ROOT_LIMIT
    assert PLAN_SAMPLES <= MAX_PLAN_SAMPLES
    unit = {"keys": ["0" * 64], "positions": MAX_UNIT_VALUES}  # one for every sample
    assert len(canonical_json(unit)) * PLAN_SAMPLES < PLAN_LIMIT
    assert f"At most {MAX_PLAN_SAMPLES:,} samples per plan" in PAGE
    assert f"at most {MAX_REASON} characters" in section("Manifests")
    fields = section("Specification")
    assert number(re.search(r"K, stored entries per soft position, 1 to ([\d^]+)", fields)[1]) == MAX_TOP_K
    assert number(re.search(r"1 to ([\d^]+) positive numbers", fields)[1]) == MAX_NODES
    assert number(re.search(r"V, rows of the student's head, at most ([\d^]+)", fields)[1]) == MAX_VOCABULARY
    assert "`format_version` | 1 |" in fields
    days = ATTEMPT_SECONDS // 86400
    assert days == 6
    assert "more than six days" in section("Commit protocol").replace("\n", " ")


def test_arrays_of_version_2():
    top_k, tail, exact = (VERSIONS[2](spec_of_kind(kind)).table for kind in ("v2", "tail", "exact"))
    old = VERSIONS[1].table.arrays
    new = [(array, "both" if name in exact.arrays else "top_k") for name, array in tail.arrays.items()]
    new = [(array, kind) for array, kind in new if old.get(array.name) is not array]
    new += [(array, "exact") for name, array in exact.arrays.items() if name not in ("keys", "samples", "turns")]
    assert rows_of("Units of version 2") == [row_of(array, kind) for array, kind in new]
    assert set(tail.arrays) - set(top_k.arrays) == {"tail_coefficient"}
    assert set(top_k.arrays) - set(old) == {"turns"}
    assert top_k.attributes == tail.attributes == VERSIONS[1].table.attributes
    assert not exact.attributes
    text = section("Units of version 2").replace("\n", " ")
    assert f"cut along the positions into chunks of {STATE_CHUNK} " in text
    assert {array.name: array.chunk for array in exact.arrays.values() if array.chunk} == {
        "state_high": STATE_CHUNK,
        "state_low": STATE_CHUNK,
    }
    named = re.search(r"A unit of kind exact has the arrays (.*?), and no attributes", text)[1]
    assert re.findall(r"`(\w+)`", named) == list(exact.arrays)


def test_arrays_of_the_head():
    rows = []
    for kind, table in (("exact", EXACT_ARRAYS), ("tail", TAIL_ARRAYS)):
        for array in table:
            axes = ", ".join(f"{name} {symbol}".strip() for name, symbol in array.axes)
            rows.append([f"`{array.name}`", kind, " or ".join(array.dtypes), axes, array.meaning])
    assert rows_of("Head of a cache")[: len(rows)] == rows
    text = section("Head of a cache").replace("\n", " ")
    assert f"keeps a chunk within {CHUNK_BYTES // 2**20} MiB" in text
    assert f"`{FIXED}` for kind exact" in text


def test_fields_and_limits_of_version_2():
    fields = section("Specification of version 2").replace("\n", " ")
    assert set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows_of("Specification of version 2")))) == {
        *VERSION_2_FIELDS, "top_k", "temperatures", "vocabulary_size", "shared_ids",
    }  # fmt: skip
    assert number(re.search(r"shape of the tail, 1 to ([\d,]+)", fields)[1]) == MAX_TAIL_RANK
    assert number(re.search(r"numbers in a hidden state, 1 to ([\d^]+)", fields)[1]) == MAX_HIDDEN_SIZE
    assert number(re.search(r"`rows`: H, 1 to ([\d^]+)", fields)[1]) == MAX_VOCABULARY
    limits = section("Limits of version 2").replace("\n", " ")
    assert number(re.search(r"At most ([\d^]+) numbers", limits)[1]) == Exact2.max_values
    assert number(re.search(r"([\d]+) MiB per chunk", limits)[1]) * 2**20 == CHUNK_BYTES == MAX_TOKEN_BYTES
    assert HEAD_LIMIT == PLAN_LIMIT
