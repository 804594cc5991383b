"""The canonical JSON of a document, made in parts, is that of `json.dumps` in one piece."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.canonical import canonical_json, parse_canonical, seal, unseal

# text without lone surrogates, which UTF-8 does not have
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_parts_are_the_whole(value):
    whole = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert canonical_json(value) == whole.encode() + b"\n"


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT.filter(lambda key: key != "digest"), VALUES))
def test_a_sealed_document_is_read_back(document):
    data = seal(document)
    assert unseal(data, "x") == document
    assert parse_canonical(data, "x").keys() == document.keys() | {"digest"}
