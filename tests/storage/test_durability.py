"""What a commit asks of the kernel, and what happens when the disk is full."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import storage_cases
from storage_cases import assert_holds, sample_of, spec_of, write_cache

from storage.errors import StoreError
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.writer import create_cache

ROOT = Path(storage_cases.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def _unavailable(reason: str) -> None:
    """Skip with a reason, but not in CI, where everything must be there."""
    if os.environ.get("FIRSTSIGHT_CI") == "1":
        pytest.fail(f"CI needs this: {reason}")
    pytest.skip(reason)


def test_everything_is_synced_before_the_link(tmp_path):
    """The recorded system calls of one commit, in order."""
    if shutil.which("strace") is None:
        _unavailable("strace is not installed")
    location = tmp_path / "cache"
    writer = create_cache(location, spec_of())
    writer.plan([PlannedSample(sample_of(number).key, 10) for number in range(4)], unit_positions=40)
    calls = "openat,write,fsync,link,linkat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2"
    trace = tmp_path / "trace"
    dump = (sys.executable, storage_cases.__file__, str(location), "4")
    done = subprocess.run(
        [*("strace", "-f", "-y", "-qq", "-e", f"trace={calls}", "-o", trace), *dump],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and "ptrace" in done.stderr:
        _unavailable(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in trace.read_text().splitlines() if str(location) in line]
    (link,) = [
        number
        for number, line in enumerate(lines)
        if "link" in line.split("(")[0] and "manifests" in line and "unlink" not in line
    ]
    before, after = lines[:link], lines[link:]
    last: dict[str, str] = {}  # path -> what was done to it last
    for line in before:
        call = re.sub(r"^\d+\s+", "", line).split("(")[0]
        if call in ("write", "fsync"):
            path = re.search(r"\(\d+<([^>]+)>", line)[1]
            last[path] = call
        elif call in ("mkdir", "mkdirat"):
            path = re.search(r'"([^"]+)"', line)[1]
            last[path] = "mkdir"
            last[str(Path(path).parent)] = "mkdir inside"
        elif call == "openat" and "O_CREAT" in line:
            path = re.search(r'"([^"]+)"', line)[1]
            last[path] = "created"
            last[str(Path(path).parent)] = "created inside"
    (unit,) = (location / "units").glob("0*")
    objects = [unit, *unit.rglob("*"), unit.parent]
    assert len(objects) > 30
    for path in objects:
        assert last[str(path)] == "fsync", path
    temporary = re.search(r'"([^"]+\.tmp)"', lines[link])[1]
    assert last[temporary] == "fsync"
    assert any(
        "fsync" in line and line.rstrip().endswith("= 0") and f"<{location}/manifests>" in line for line in after
    )


def _tmpfs_prefix(mount: Path, size: str) -> list[str]:
    """A command prefix that runs a shell line with a small tmpfs at `mount`, in a mount namespace of its own."""
    inner = f"mount -t tmpfs -o size={size} tmpfs {mount} && "
    for flags in (["-m"], ["-rm"]):
        prefix = ["unshare", *flags, "sh", "-c"]
        if shutil.which("unshare") and subprocess.run([*prefix, inner + "true"], capture_output=True).returncode == 0:
            return [*prefix, inner]
    _unavailable("neither root nor user namespaces: no small tmpfs can be mounted")
    return []


def test_a_full_disk(tmp_path):
    """The dump fails with a clear message; what is committed stays; it goes on after space is freed."""
    mount = tmp_path / "small"
    mount.mkdir()
    *prefix, inner = _tmpfs_prefix(mount, "1200k")
    dump = f"{sys.executable} {storage_cases.__file__} {mount}/cache 24"
    check = (
        f"{sys.executable} -c 'import sys; from storage.maintenance.verify import verify_cache; "
        f'report = verify_cache("{mount}/cache"); print(report.units, len(report.problems), len(report.missing))\''
    )
    script = (
        f"head -c 900k /dev/zero > {mount}/ballast; {dump}; echo exit $?; {check}; "
        f"rm {mount}/ballast; {dump}; echo exit $?; {check}"
    )
    done = subprocess.run([*prefix, inner + script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    failed, first, succeeded, second = done.stdout.strip().splitlines()
    assert failed != "exit 0"
    assert succeeded == "exit 0"
    units, problems, missing = map(int, first.split())
    assert problems == 0
    assert units + missing == 6
    assert 0 < units < 6
    assert second == "6 0 0"
    assert "StoreError: no space left while writing" in done.stderr
    assert "free some and start again; committed units are kept" in done.stderr


@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_a_write_that_fails(tmp_path, monkeypatch, after):
    """The same on every machine: the n-th write of a commit finds no space."""
    location = tmp_path / "cache"
    samples = [sample_of(number) for number in range(8)]
    write_cache(location, samples[:4])
    before = verify_cache(location)
    real, calls = os.write, [0]

    def write(descriptor, data):
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError, match=r"no space left while writing .*free some and start again"):
        write_cache(location, samples)
    monkeypatch.undo()
    assert not verify_cache(location).problems
    assert verify_cache(location).units == before.units
    write_cache(location, samples)
    assert_holds(open_cache(location), samples)
    assert not list(location.rglob(".*.tmp"))


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="file system without hard links; choose another"):
        create_cache(tmp_path / "cache", spec_of())


def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch):
    def mkdir(path, *_):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StoreError, match="cache: Permission denied"):
        create_cache(tmp_path / "cache", spec_of())
