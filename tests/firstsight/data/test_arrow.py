"""Parquet files and directories of `save_to_disk`, with pictures as paths and as bytes."""

import io
import json

import pytest
from optional_packages import optional_package
from PIL import Image

from firstsight.data.containers import open_container
from firstsight.data.samples import SampleFiles, load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

pa = optional_package("pyarrow")
pq = optional_package("pyarrow.parquet")


def picture(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


ROWS = [
    {
        "id": f"r{n}",
        # Arrow gives every part of a list the keys of all of them
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": f"What {n}?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
        ],
        "images": [{"bytes": picture(("red", "blue")[n % 2]), "path": None}],
        "category": None,
    }
    for n in range(70)
]


def parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=9)
    return path


def saved(path):
    path.mkdir()
    table = pa.Table.from_pylist(ROWS)
    names = []
    for number, part in enumerate((table.slice(0, 50), table.slice(50))):
        name = f"data-{number:05d}-of-00002.arrow"
        with pa.OSFile(str(path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
        names.append({"filename": name})
    (path / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x", "_split": "train"}))
    (path / "dataset_info.json").write_text("{}")
    return path


@pytest.mark.parametrize(("make", "name"), [(parquet, "train.parquet"), (parquet, "data"), (saved, "train")])
def test_rows_with_pictures_inside(tmp_path, make, name):
    path = make(tmp_path / name)
    samples = load_samples(path)
    assert [sample.id for sample in samples] == [row["id"] for row in ROWS]
    assert [sample.open_images()[0].getpixel((0, 0)) for sample in samples[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert samples[3].place == f"{name}: row 4"
    files = SampleFiles(DataSource(files=(path,), root=tmp_path))
    located = list(files.located())
    for each in (located[69], located[0], located[33]):
        assert files.sample(each.file, each.locator, each.number) == each.sample
    # the same row as text, with its picture as a file, has the same key
    (tmp_path / "a.png").write_bytes(picture("red"))
    (tmp_path / "t.jsonl").write_text(json.dumps({**ROWS[0], "images": ["a.png"]}))
    assert load_samples(tmp_path / "t.jsonl")[0].key == samples[0].key


def test_a_path_inside_a_table_stays_under_the_root(tmp_path):
    row = {"question": "x", "image": {"bytes": None, "path": "/etc/hostname"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: row 1: image '/etc/hostname' is outside data\.root"):
        load_samples(tmp_path / "t.parquet")


def test_damaged_files_are_one_line(tmp_path):
    data = parquet(tmp_path / "t.parquet").read_bytes()
    for broken in (data[:-20], data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :], b"PAR1"):
        (tmp_path / "t.parquet").write_bytes(broken)
        with pytest.raises(DataError, match=r"t\.parquet: (cannot be read|row)") as error:
            load_samples(tmp_path / "t.parquet")
        assert "\n" not in str(error.value)
    path = saved(tmp_path / "train")
    (path / "data-00001-of-00002.arrow").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"train: cannot be read"):
        load_samples(path)
    (path / "state.json").write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match=r"flatten_indices"):
        load_samples(path)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'firstsight\[data\]'"):
        list(open_container(path, "t.parquet").rows())
