"""Files of rows: encodings, line ends, arrays, tables, compression; hostile ones end in one clear line, with little memory."""

import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstsight.data.containers import open_container
from firstsight.data.containers.text import lines
from firstsight.data.samples import SampleFiles, load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

ROWS = [{"id": f"r{n}", "question": f"Größe {n}?\u2028", "answer": f"{n} km"} for n in range(5)]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


def read(path, **options):
    return [(s.id, s.question, s.answer) for s in load_samples(DataSource(files=(path,), root=path.parent, **options))]


EXPECTED = [(row["id"], row["question"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\r\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_any_end_and_mark(tmp_path, end, mark, packed):
    path = tmp_path / "t.jsonl"
    data = mark + end.join(LINES).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read(path) == EXPECTED


def test_a_file_that_mixes_line_ends(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b"".join(line.encode() + end for line, end in zip(LINES, (b"\n", b"\r", b"\r\n", b"\n", b"\r"), strict=True))
    )
    assert read(path) == EXPECTED


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "data"])
def test_an_array_is_found_by_looking_at_the_file(tmp_path, packed, indent, name):
    path = tmp_path / name
    data = ("\ufeff \n" + json.dumps(ROWS, indent=indent)).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read(path) == EXPECTED


def test_elements_across_the_pieces_that_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("firstsight.data.containers.json_array._CHUNK", 7)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False))
    assert read(path) == EXPECTED
    path.write_text("[12345678901, 3]")
    assert [value for _, _, value in open_container(path, "t").rows()] == [12345678901, 3]


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.csv.gz", ",")])
def test_tables(tmp_path, name, delimiter):
    path = tmp_path / name
    text = delimiter.join(("id", "question", "answer")) + "\r\n"
    text += "".join(delimiter.join((row["id"], f'"{row["question"]}"', row["answer"])) + "\r\n" for row in ROWS)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read(path) == EXPECTED
    path = tmp_path / "more.csv"
    path.write_text('question,answer,options\n"a,\n""b""?",,"[""x"", ""y""]"\n')
    (sample,) = load_samples(path)
    assert (sample.question, sample.answer, sample.options) == ('a,\n"b"?', None, ("x", "y"))
    assert sample.place == "more.csv:3"


GOOD = LINES[0].encode()
BAD = {
    "latin-1": (
        LINES[0].encode("latin-1", "replace"),
        r"t\.jsonl:1: byte \d+ \(0xf6\) is not UTF-8; .* iconv -f LATIN1",
    ),
    "utf-16": (LINES[0].encode("utf-16"), r"t\.jsonl: the encoding is UTF-16, expected UTF-8; .*iconv -f UTF-16"),
    "utf-32": (LINES[0].encode("utf-32"), r"the encoding is UTF-32"),
    "utf-16 without a mark": (
        GOOD + b"\n" + LINES[1].encode("utf-16-le"),
        r"t\.jsonl:2: expected UTF-8, got a NUL byte",
    ),
    "NUL": (GOOD + b"\n\0", r"t\.jsonl:2: expected UTF-8, got a NUL byte"),
    "trailing comma": (b'{"question": "a",}', r"t\.jsonl:1: not a JSON object \("),
    "NaN": (b'{"question": "a", "times": [NaN]}', r"t\.jsonl:1: not a JSON object \(NaN is not JSON\)"),
    "a key twice": (b'{"question": "a", "question": "b"}', r"the key 'question' is given twice"),
    "nesting": (b'{"question": ' + b"[" * 100_000, r"t\.jsonl:1: not a JSON object \(nested too deeply\)"),
    "nesting in an array": (b"[" * 100_000, r"row 1: not a JSON object \(nested too deeply\)"),
    "large number": (b'{"id": ' + b"9" * 5000 + b"}", r"t\.jsonl:1: not a JSON object \("),
    "array with a trailing comma": (b"[" + GOOD + b",\n]", r"t\.jsonl: row 1: a ',' after the last row; remove it"),
    "array without an end": (b"[" + GOOD, r"row 1: expected ',' or '\]' after it, got the end of the file"),
    "array cut after a comma": (b"[" + GOOD + b",", r"row 2: the file ends inside the array"),
    "array and more": (b"[" + GOOD + b"] x", r"text follows the array's closing"),
    "array of latin-1": (b"[" + LINES[0].encode("latin-1", "replace") + b"]", r"is not UTF-8"),
    "array of lists": (b"[[1]]", r"row 1: expected a JSON object, got list"),
    "cut gzip": (gzip.compress(GOOD * 1000)[:-9], r"t\.jsonl: (cannot be read|is a damaged gzip file)"),
    "empty": (b"", r"t\.jsonl: holds no rows"),
    "blank": (b"\n \r\n", r"t\.jsonl: holds no rows"),
    "empty array": (b" [ ] ", r"t\.jsonl: holds no rows"),
    "zip": (b"PK\x03\x04xx", r"is a zip archive"),
    "zstd": (b"\x28\xb5\x2f\xfdxx", r"compressed with zstd"),
    "tar": (bytes(257) + b"ustar\0" + bytes(300), r"is a tar archive; unpack it"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_broken_file_is_one_line(tmp_path, name):
    data, message = BAD[name]
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        load_samples(path)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a\n1,2\n", r"the header has the column 'a' twice"),
        ("question,answer\n1\n", r"t\.csv:2: has 1 cell, but the header has 2 columns"),
        ('question\n"a', r"t\.csv:2: not CSV \("),
        ("question,answer\n", r"holds no rows"),
        ("question,other\n1,2\n", r"unknown key 'other'"),
    ],
)
def test_each_broken_table_is_one_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "t.csv")


def test_directories_that_are_no_data(tmp_path):
    with pytest.raises(DataError, match=r"is a directory, but not one of save_to_disk"):
        load_samples(tmp_path)
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds the splits test, train; name one of them"):
        load_samples(tmp_path)


def test_all_faults_are_found_in_one_pass(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join([b"{", GOOD, b"\xff", b'{"x": 1}', LINES[1].encode()]))
    faults = []
    files = SampleFiles(DataSource(files=(path,), root=tmp_path))
    assert [each.sample.id for each in files.located(faults.append)] == ["r0", "r1"]
    assert [str(fault).partition(": ")[0] for fault in faults] == ["t.jsonl:1", "t.jsonl:3", "t.jsonl:4"]


def test_several_files_are_one_split(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "t.jsonl").write_text(LINES[0])
    (tmp_path / "t.jsonl").write_text('{"question": "x"}\n' + LINES[0])
    source = DataSource(files=(tmp_path / "a" / "t.jsonl", tmp_path / "t.jsonl"), root=tmp_path)
    assert [sample.id for sample in load_samples(source)] == ["r0", f"{tmp_path.name}/t.jsonl:1", "r0#2"]


def test_a_share_for_validation_is_stable_while_data_grow(tmp_path):
    path = tmp_path / "t.jsonl"

    def splits(count):
        path.write_text("".join(json.dumps({"id": n, "question": f"q{n}"}) + "\n" for n in range(count)))
        source = {"files": (path,), "root": tmp_path, "share": 0.2}
        return [{s.id for s in load_samples(DataSource(**source, part=part))} for part in ("train", "validation")]

    train, validation = splits(300)
    more_train, more_validation = splits(600)
    assert train < more_train
    assert validation < more_validation
    assert len(train | validation) == 300
    assert not train & validation
    assert 35 <= len(validation) <= 85
    path.write_text('{"question": "a"}')
    none = DataSource(files=(path,), root=tmp_path, share=1e-9, part="validation")
    with pytest.raises(DataError, match=r"none of the 1 row falls into this split"):
        load_samples(none)


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\r").replace(b"\x01", b"\n")), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_lines_are_those_of_universal_newlines(tmp_path_factory, data, chunk):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = list(lines(file, 0, "f", chunk=chunk))
    assert [line for _, line in found] == data.splitlines(keepends=True)
    assert all(data[offset : offset + len(line)] == line for offset, line in found)


@pytest.mark.parametrize("kind", ["line", "element", "gzip"])
def test_a_huge_row_is_refused_with_bounded_memory(tmp_path, kind):
    """100 MB in one row, against what reading a small file takes."""
    path = tmp_path / "t.jsonl"
    begin = b'[{"question": "' if kind == "element" else b'{"question": "'
    if kind == "gzip":
        path.write_bytes(gzip.compress(begin + b"a" * 100_000_000, 1))
    else:
        path.write_bytes(begin + b"a" * 100_000_000)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from firstsight.data.samples import load_samples\n"
        "from firstsight.errors import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_samples(Path(sys.argv[1]))\n"
        "except DataError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    message, grown = out.strip().split("\n")
    assert "t.jsonl" in message
    assert len(message) < 300
    assert int(grown) < 450_000  # KB


@pytest.mark.parametrize("name", ["UP.CSV", "Rows.Csv", "rows.TSV", "rows.tsv.GZ"])
def test_the_ending_of_a_table_may_be_in_capitals(tmp_path, name):
    text = "question,answer\nWhat?,A cup.\n"
    text = text.replace(",", "\t") if "tsv" in name.lower() else text
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    assert [row[1:] for row in read(tmp_path / name)] == [("What?", "A cup.")]


@pytest.mark.parametrize("indent", [2, "\t"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", [{"data": [{"question": "q"}]}, {"question": "q", "answer": "a"}, {"rows": []}])
def test_one_object_over_several_lines_is_one_fault_that_says_so(tmp_path, content, indent, packed):
    data = ("\n" + json.dumps(content, indent=indent) + "\n").encode()
    path = tmp_path / "rows.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    faults = []
    assert list(SampleFiles(DataSource(files=(path,), root=tmp_path)).located(faults.append)) == []
    (fault,) = map(str, faults)
    assert fault.startswith(
        "rows.json:2: a JSON object begins here that goes on in the next line; expected one row per line"
    )
    with pytest.raises(DataError, match="expected one row per line"):
        read(path)


def test_a_broken_line_between_rows_is_a_fault_of_its_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b",\n{"question": "c"}\n')
    faults = []
    files = SampleFiles(DataSource(files=(path,), root=tmp_path))
    assert [each.sample.question for each in files.located(faults.append)] == ["a", "c"]
    assert len(faults) == 1
    path.write_text('{"question": "b",\n{"question": "c"}\n')
    assert [each.sample.question for each in files.located(faults.append)] == ["c"]
    path.write_text('{"question": "b",\n')
    assert list(files.located(faults.append)) == []
    assert [("rows.jsonl:1: not a JSON object" in str(fault)) for fault in faults] == [False, True, True]
