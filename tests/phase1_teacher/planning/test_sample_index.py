"""Samples by key without holding them."""

import pytest

from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from phase1_teacher.planning.sample_index import SampleIndex


def build(workshop, rows):
    workshop.recipe(rows)
    root = workshop.directory / "data"
    files = [root / "train.jsonl", root / "validation.jsonl"]
    samples = [sample for file in files for sample in load_samples(file, root)]
    return SampleIndex.build(files, root, lambda sample: len(sample.answer)), samples, files


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
    with pytest.raises(DataError, match=r"train.jsonl:1: the row or its images were changed while the dump ran"):
        index[samples[0].key]
