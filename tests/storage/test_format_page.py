"""docs/FORMAT.md and the code state one truth: arrays, attributes, limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.canonical import canonical_json
from storage.format import VERSIONS
from storage.format.base import MAX_UNIT_SAMPLES, MAX_UNIT_VALUES
from storage.format.layout import MAX_NODES, MAX_TOP_K, MAX_VOCABULARY
from storage.format.v1 import arrays, checks, values
from storage.plan import MAX_PLAN_SAMPLES, PLAN_LIMIT, PLAN_SAMPLES
from storage.spec import ROOT_LIMIT
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


def test_arrays():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section("Units").splitlines()
        if line.startswith("| `")
    ]
    table = VERSIONS[1].table.arrays
    assert rows == [
        [
            f"`{array.name}`",
            " or ".join(array.dtypes),
            ", ".join(f"{axis.name.replace('_', ' ')} {axis.symbol}".strip() for axis in array.axes),
            array.meaning,
        ]
        for array in table.values()
    ]
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
    assert f"`format_version` | {max(VERSIONS)} |" in fields
    days = ATTEMPT_SECONDS // 86400
    assert days == 6
    assert "more than six days" in section("Commit protocol").replace("\n", " ")
