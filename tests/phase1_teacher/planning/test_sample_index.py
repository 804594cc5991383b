"""Samples by key without holding them."""

import csv
import gzip
import json

import pytest

from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError
from phase1_teacher.planning.sample_index import SampleIndex


def build(workshop, rows):
    workshop.recipe(rows)
    root = workshop.directory / "data"
    files = [root / "train.jsonl", root / "validation.jsonl"]
    samples = [sample for file in files for sample in load_samples(file, root)]
    sources = [DataSource(files=(file,), root=root) for file in files]
    return SampleIndex.build(sources, lambda sample: len(sample.answer)), samples, files


def test_every_sample_is_found_by_its_key_and_planned_once(workshop):
    index, samples, _ = build(workshop, workshop.rows(20))
    assert len(index) == 20
    for sample in samples:
        assert sample.key in index
        assert index[sample.key] == sample
    assert "0" * 64 not in index
    assert 7 not in index
    with pytest.raises(KeyError):
        index["0" * 64]
    planned = {sample.key: sample.positions for sample in index.planned()}
    assert planned == {sample.key: len(sample.answer) for sample in samples}


def test_questions_about_one_image_are_planned_next_to_each_other(workshop):
    rows = workshop.rows(12, questions=2)
    index, samples, _ = build(workshop, [*rows[0::2], *rows[1::2]])
    images = {sample.key: sample.images for sample in samples}
    order = [images[sample.key] for sample in index.planned()]
    assert all(order[place] == order[place + 1] for place in range(0, 12, 2))


def test_a_row_that_changes_afterwards_is_refused(workshop):
    index, samples, files = build(workshop, workshop.rows(4))
    files[0].write_text(files[0].read_text().replace("s0", "s9").replace('"text": "', '"text": "so '))
    with pytest.raises(DataError, match=r"train.jsonl:1: the row or its images changed during the dump"):
        index[samples[0].key]
    with pytest.raises(DataError, match=r"train.jsonl:2: the row or its images changed during the dump"):
        index[samples[1].key]  # its line has moved


@pytest.mark.parametrize("kind", ["array", "gzip", "csv", "carriage returns"])
def test_rows_of_every_text_container_are_found_again(workshop, kind):
    rows = workshop.rows(8)
    root = workshop.directory / "data"
    lines = [json.dumps(row) for row in rows]
    path = root / {"array": "t.json", "gzip": "t.jsonl.gz", "csv": "t.csv", "carriage returns": "t.jsonl"}[kind]
    if kind == "array":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "gzip":
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "messages", "images"])
            writer.writeheader()
            writer.writerows(
                {**row, "messages": json.dumps(row["messages"])} | {"images": json.dumps(row["images"])} for row in rows
            )
    else:
        path.write_bytes("\r".join([*lines[:3], "\n" + lines[3], *lines[4:]]).encode())
    source = DataSource(files=(path,), root=root)
    samples = load_samples(source)
    assert [sample.id for sample in samples] == [row["id"] for row in rows]
    index = SampleIndex.build([source], lambda sample: len(sample.answer))
    assert [index[sample.key] for sample in samples] == samples
