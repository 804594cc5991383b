"""Random rows through every container, encoding and line end: what is accepted says what was written, or it is refused in one line."""

import contextlib
import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_packages import optional_package
from PIL import Image

from firstsight.data.images import SHOWN
from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0<"), min_size=1, max_size=12).filter(
    str.strip
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def as_lines(pairs, end):
    return end.join(json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs)


def as_array(pairs, end):
    return json.dumps([{"question": q, "answer": a} for q, a in pairs], ensure_ascii=False, indent=len(end))


def as_table(pairs, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("question", "answer"), *pairs])
    return text.getvalue()


@given(
    PAIRS,
    st.sampled_from([as_lines, as_array, as_table]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]),
    st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_a_file_is_read_as_it_was_written_or_refused(tmp_path_factory, pairs, write, end, encoding, packed):
    data = write(pairs, end).encode(encoding, "replace")
    path = tmp_path_factory.getbasetemp() / ("rows.csv" if write is as_table else "rows.json")
    path.write_bytes(gzip.compress(data) if packed else data)
    refusal = None
    try:
        found = [(sample.question, sample.answer) for sample in load_samples(path)]
    except DataError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        assert len(refusal) < 600
        assert not encoding.startswith("utf-8") or write is as_table  # a cell may look like JSON, or be no text
        return
    expected = (
        pairs
        if encoding.startswith("utf-8")
        else [tuple(t.encode(encoding, "replace").decode() for t in p) for p in pairs]
    )
    assert found == expected


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "LA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "PA",
    "La",
    "RGBa",
    "RGBX",
]


@given(
    st.sampled_from(MODES),
    st.sampled_from(["PNG", "TIFF", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TGA"]),
    st.integers(0, 255),
)
@settings(max_examples=200, deadline=None)
def test_a_picture_of_any_mode_is_shown_or_refused(tmp_path_factory, mode, kind, value):
    root = tmp_path_factory.getbasetemp()
    try:
        grey = Image.new("L", (5, 4), value)
        Image.new(mode, (5, 4)).save(io.BytesIO(), kind) if mode not in ("L",) else grey.save(io.BytesIO(), kind)
        picture = grey if mode == "L" else Image.new(mode, (5, 4))
        picture.save(root / "picture", kind)
    except (OSError, ValueError, KeyError):
        return  # no such file can be made
    (root / "one.json").write_text(json.dumps([{"question": "What?", "image": "picture"}]))
    (sample,) = load_samples(DataSource(files=(root / "one.json",), root=root))
    with Image.open(root / "picture") as stored:
        if stored.mode not in SHOWN or SHOWN[stored.mode] == "32 bits":
            with contextlib.suppress(DataError):
                sample.open_images()
            return
    (image,) = sample.open_images()
    assert (image.mode, image.size) == ("RGB", (5, 4))
    if mode == "L" and kind not in ("JPEG", "WEBP"):
        assert image.getpixel((2, 2)) == (value,) * 3


NESTED = b'{"question": ' + b"[" * 100_000
HOSTILE = {
    "nesting": NESTED,
    "nesting of objects": b'{"a":' * 100_000,
    "NaN": b'{"question": "a", "times": [NaN]}',
    "comma": b'{"question": "a",}',
    "NUL": b'{"question": "a\0"}',
    "mark in the middle": '{"question": "a"}\n\ufeff{"question": "b"}'.encode(),
    "half a pair": rb'{"question": "\ud800"}',
    "no UTF-8": b'{"question": "\xe4"}',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("container", ["line", "gzip", "array", "packed array", "cell", "packed cell"])
def test_hostile_content_in_every_container_is_one_line(tmp_path, name, container):
    data = HOSTILE[name]
    if "array" in container:
        data = b"[" + data + b"]"
    if "cell" in container:
        closed = data if data.endswith(b"}") else data + b"}"
        data = b'question,options\n"x","' + closed.replace(b'"', b'""') + b'"\n'
    path = tmp_path / ("rows.csv" if "cell" in container else "rows.json")
    path.write_bytes(gzip.compress(data) if container in ("gzip", "packed array", "packed cell") else data)
    with pytest.raises(DataError) as error:
        load_samples(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("rows.")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_hostile_documents_of_a_directory_are_one_line(tmp_path, file):
    optional_package("pyarrow")
    for data in (b"[" * 100_000, b"\0", b"\xff", b"{,}", b"NaN", b"[]", b'{"_data_files": [{"filename": 5}]}', b""):
        (tmp_path / file).write_bytes(data)
        with pytest.raises(DataError) as error:
            load_samples(tmp_path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
