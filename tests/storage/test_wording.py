"""Counts in messages."""

import pytest

from storage.wording import counted


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 samples"),
        (1, "1 sample"),
        (2, "2 samples"),
        (1234, "1,234 samples"),
        (1.0, "1 sample"),
        (2e6, "2,000,000 samples"),
    ],
)
def test_counted(count, text):
    assert counted(count, "sample") == text


def test_counted_with_its_verb():
    assert counted(1, "sample is", "samples are") == "1 sample is"
    assert counted(0, "sample is", "samples are") == "0 samples are"
