"""The folder of wheels for a machine without a network."""

import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import carry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "bitsandbytes-0.49.2-py3-none-any.whl"
    names = ["cuda126", "cuda128", "cuda130", "rocm64", "xpu", "cpu"]
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("bitsandbytes/__init__.py", "")
        for name in names:
            out.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name * 100)
    return path


def test_only_the_named_libraries_stay(wheel):
    carry.strip(wheel, ["128", "130"])
    left = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    libraries = {f"libbitsandbytes_{name}.so" for name in ("cuda128", "cuda130", "cpu")}
    assert left == {"__init__.py", *libraries}


def test_a_library_that_the_wheel_does_not_have(wheel):
    with pytest.raises(SystemExit, match=r"no library for CUDA 111"):
        carry.strip(wheel, ["111", "128"])


def test_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    (tmp_path / "big-1-py3-none-any.whl").write_bytes(bytes(2 * 2**20))
    assert carry.check_size(tmp_path) == 2 * 2**20
    monkeypatch.setattr(carry, "LIMIT", 2**20)
    with pytest.raises(SystemExit, match=r"2\.0 MiB, more than 1"):
        carry.check_size(tmp_path)


def test_what_is_there_already_stays(tmp_path, capsys):
    for name in ("click-0.1", "click_that_nobody_has-2.0"):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as out:
            out.writestr(f"{name.split('-')[0]}.py", "")
    carry.unpack(tmp_path, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["click_that_nobody_has.py"]
    assert "is installed" in capsys.readouterr().out


def test_the_oldest_series_are_those_of_the_project():
    found = carry.oldest_series(ROOT / "pyproject.toml")
    assert found["zarr"] == "zarr==3.1.*"
    assert found["bitsandbytes"] == "bitsandbytes==0.49.*"
