"""Datasets of the hub: subset, split and slice; pictures as they are stored. No hub is reached: directories, and a stub of the call."""

import io
import json
import sys
import types

import pytest
from optional_packages import optional_package
from PIL import Image

from firstsight.data.entries import HubSplit
from firstsight.data.samples import SampleFiles, load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

pa = optional_package("pyarrow")
pq = optional_package("pyarrow.parquet")


def picture(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def rows(name, count=10):
    return [
        {
            "id": f"{name}{n}",
            "image": {"bytes": picture(("red", "blue")[n % 2]), "path": "/etc/hostname"},
            "question": f"What {n}?",
            "answer": "A cup.",
            "category": n % 2,
        }
        for n in range(count)
    ]


LABELS = {"info": {"features": {"category": {"names": ["objects", "places"], "_type": "ClassLabel"}}}}


def table(name, count=10):
    return pa.Table.from_pylist(rows(name, count)).replace_schema_metadata({"huggingface": json.dumps(LABELS)})


@pytest.fixture
def repository(tmp_path):
    """A dataset's repository, as it is on the hub: a card with two configurations, and Parquet."""
    card = "---\nconfigs:\n"
    for subset in ("Activity", "Object"):
        (tmp_path / "repo" / subset).mkdir(parents=True)
        card += f"- config_name: {subset}\n  data_files:\n"
        for split in ("train", "test"):
            pq.write_table(table(f"{subset}-{split}-"), tmp_path / "repo" / subset / f"{split}-00000-of-00001.parquet")
            card += f"  - split: {split}\n    path: {subset}/{split}-*\n"
    (tmp_path / "repo" / "README.md").write_text(card + "---\n")
    return tmp_path / "repo"


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def read(hub, **settings):
        return load_samples(DataSource(files=(HubSplit(hub=str(hub), **settings),), root=tmp_path))

    return read


def test_subset_split_and_slice_of_a_repository(repository, read, tmp_path, monkeypatch):
    datasets = optional_package("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    datasets.disable_progress_bars()
    samples = read(repository, subset="Activity", split="train[20%:50%]")
    assert [sample.id for sample in samples] == ["Activity-train-2", "Activity-train-3", "Activity-train-4"]
    assert [sample.category for sample in samples] == ["objects", "places", "objects"]
    assert [sample.open_images()[0].getpixel((0, 0)) for sample in samples[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert samples[0].place == "repo Activity train[20%:50%]: row 1"
    files = SampleFiles(
        DataSource(files=(HubSplit(hub=str(repository), subset="Object", split="test"),), root=tmp_path)
    )
    located = list(files.located())
    for each in (located[9], located[0]):
        assert files.sample(each.file, each.locator, each.number) == each.sample
    for settings, message in (
        ({"split": "train"}, r"repo train: datasets cannot load it \(.*[Cc]onfig.*Activity.*Object"),
        ({"subset": "Activity"}, r"has the splits train, test; name one: split: train"),
        ({"subset": "Activity", "split": "valid"}, r"datasets cannot load it \(.*valid"),
        ({"subset": "None"}, r"datasets cannot load it \(.*None"),
        ({"subset": "Activity", "split": "train[100:200]"}, r"datasets cannot load it \(.*no data"),
        ({"subset": "Activity", "split": "train[:x]"}, r"datasets cannot load it \(.*train\[:x\]"),
        (
            {"subset": "Activity", "split": "train", "revision": "v1"},
            r"is a directory, which has no revision 'v1'; remove",
        ),
    ):
        with pytest.raises(DataError, match=message) as error:
            read(repository, **settings)
        assert "\n" not in str(error.value)


def test_repositories_of_other_layouts(tmp_path, read, monkeypatch):
    """No card, shards; JSONL with a configuration that the card calls the default; CSV; pictures with a table beside them."""
    datasets = optional_package("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    datasets.disable_progress_bars()
    (tmp_path / "shards" / "data").mkdir(parents=True)
    for number, part in enumerate("ab"):
        pq.write_table(table(part, 5), tmp_path / "shards" / "data" / f"train-{number:05d}-of-00002.parquet")
    assert [each.id for each in read(tmp_path / "shards", split="train[4:6]")] == ["a4", "b0"]
    assert len(read(tmp_path / "shards")) == 10
    text = {"question": "What?", "answer": "A cup."}
    for name in ("en", "de"):
        (tmp_path / "lines" / name).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = [json.dumps({"id": f"{name}-{split}-{n}", **text}) for n in range(4)]
            (tmp_path / "lines" / name / f"{split}.jsonl").write_text("\n".join(lines))
    card = "---\nconfigs:\n- config_name: en\n  data_dir: en\n  default: true\n- config_name: de\n  data_dir: de\n---\n"
    (tmp_path / "lines" / "README.md").write_text(card)
    assert read(tmp_path / "lines", split="train")[0].id == "en-train-0"
    assert [each.id for each in read(tmp_path / "lines", subset="de", split="validation[75%:]")] == ["de-validation-3"]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "test.csv").write_text("question,answer\nWhat?,A cup.\n")
    assert read(tmp_path / "tables", split="test")[0].answer == "A cup."
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    (tmp_path / "pictures" / "train" / "a.png").write_bytes(picture("blue"))
    (tmp_path / "pictures" / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **text}))
    (sample,) = read(tmp_path / "pictures", split="train")
    assert sample.open_images()[0].getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(DataError, match=r"script train: datasets cannot load it \(.*script"):
        read(tmp_path / "script", split="train")


class Stub:
    """What `datasets` gives for a split, of an Arrow table."""

    def __init__(self, content):
        self.content = content
        self.features = types.SimpleNamespace(arrow_schema=content.schema)

    def __len__(self):
        return self.content.num_rows

    def with_format(self, name):
        assert name == "arrow"  # else every picture would be decoded
        return self

    def __getitem__(self, part):
        return self.content.slice(part.start, part.stop - part.start)


@pytest.fixture
def stub(monkeypatch):
    asked = []
    found = {}

    def load_dataset(path, name=None, *, split=None, revision=None):
        asked.append((path, name, split, revision))
        if isinstance(found[path], Exception):
            raise found[path]
        return found[path]

    class Error(Exception):
        pass

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    module.exceptions = types.SimpleNamespace(DatasetsError=Error)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked, found


def test_what_is_asked_of_the_hub(stub, read):
    asked, found = stub
    found["org/name"] = Stub(table("r"))
    samples = read("org/name", subset="en", split="train[:1%]", revision="v2")
    assert asked == [("org/name", "en", "train[:1%]", "v2")]
    assert [sample.id for sample in samples] == [f"r{n}" for n in range(10)]
    found["org/name"] = {"train": Stub(table("r"))}
    assert len(read("org/name")) == 10
    found["org/name"] = ConnectionError("no\nnetwork")
    with pytest.raises(DataError, match=r"org/name train: datasets cannot load it \(no network\); check hub") as error:
        read("org/name", split="train")
    assert "\n" not in str(error.value)


def test_without_datasets_it_says_what_to_install(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError,
        match=r"org/name train: a hub dataset needs the package datasets; install it with: pip install 'firstsight\[data\]'",
    ):
        read("org/name", split="train")


def test_a_directory_of_parquet_files(tmp_path):
    where = tmp_path / "train"
    where.mkdir()
    for number, part in enumerate((table("a", 7), table("b", 5))):
        pq.write_table(part, where / f"train-{number:05d}-of-00002.parquet", row_group_size=3)
    source = DataSource(files=(where,), root=tmp_path)
    samples = load_samples(source)
    assert [sample.id for sample in samples] == [*(f"a{n}" for n in range(7)), *(f"b{n}" for n in range(5))]
    assert samples[1].category == "places"
    files = SampleFiles(source)
    located = list(files.located())
    for each in (located[11], located[0], located[7], located[6]):
        assert files.sample(each.file, each.locator, each.number) == each.sample
    pq.write_table(table("c"), where / "test-00000-of-00001.parquet")
    with pytest.raises(
        DataError,
        match=r"train: holds Parquet files of different names \(test-00000-of-00001\.parquet, .*, perhaps splits",
    ):
        load_samples(source)
    (tmp_path / "up").mkdir()
    where.rename(tmp_path / "up" / "train")
    with pytest.raises(DataError, match=r"up: its Parquet files are in subdirectories"):
        load_samples(DataSource(files=(tmp_path / "up",), root=tmp_path))


def test_tables_that_cannot_be_read_as_rows(tmp_path):
    path = tmp_path / "t.parquet"
    whole = pa.table({"question": ["a", "b"], "answer": pa.array([b"x", b"\xff"]).view(pa.string())})
    pq.write_table(whole, path)
    faults = []
    files = SampleFiles(DataSource(files=(path,), root=tmp_path))
    assert [each.sample.answer for each in files.located(faults.append)] == ["x"]
    assert str(faults[0]).startswith("t.parquet: row 2: cannot be read ('utf-8' codec")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["question", "question"]), path)
    with pytest.raises(DataError, match=r"t\.parquet: has the column 'question' twice"):
        load_samples(path)
