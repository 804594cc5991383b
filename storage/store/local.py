"""A cache in a local directory: durable exclusive creation, and reads that never follow a link."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from storage.errors import CacheError, ObjectMissing, StoreError, UnsafeObject
from storage.failpoints import failpoint
from storage.store.base import Store, checked_path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStore(Store):
    """Objects as files below one directory. The directory itself may be reached through a link, nothing below."""

    def __init__(self, location: str | Path) -> None:
        self.root = Path(location).expanduser().absolute()
        self.location = str(self.root)

    def read(self, path: str, *, limit: int) -> bytes:
        """The bytes of a file; see `Store.read`."""
        with self._translated(path):
            descriptor = self._open(path)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise UnsafeObject(f"{self.root / path} is not a plain file; refused")
                if status.st_size > limit:
                    raise UnsafeObject(
                        f"{self.root / path} has {status.st_size:,} bytes, expected at most {limit:,}; refused"
                    )
                wanted = status.st_size + 1  # not `limit`: a read allocates as many bytes as it is asked for
                data = file.read(wanted)
                while 0 < len(data) < status.st_size and (more := file.read(wanted - len(data))):
                    data += more
                return data

    def read_many(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The bytes of several files; see `Store.read_many`."""
        return {path: self.read(path, limit=limit) for path, limit in limits.items()}

    def size(self, path: str) -> int | None:
        """The size of a file in bytes, or None; see `Store.size`."""
        checked_path(path)
        with self._translated(path):
            try:
                return os.lstat(self.root / path).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def create(self, path: str, data: bytes) -> bool:
        """Link a fsynced temporary file to its final name; see `Store.create`."""
        *_, name = checked_path(path)
        final = self.root / path
        with self._translated(path):
            _make_directories(final.parent)
            temporary = final.parent / f".{name}.{secrets.token_hex(8)}.tmp"
            try:
                failpoint("create:begin")
                _write_durably(temporary, data)
                failpoint("create:written")
                try:
                    os.link(temporary, final, follow_symlinks=False)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                        raise StoreError(
                            f"{final.parent} lies on a file system without hard links; choose another"
                        ) from None
                    raise
                failpoint("create:linked")
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            _sync_directory(final.parent)
            failpoint("create:synced")
            return True

    def write_tree(self, prefix: str, files: Mapping[str, bytes]) -> None:
        """Write files under a fresh directory, then fsync every file and directory; see `Store.write_tree`."""
        checked_path(prefix)
        top = self.root / prefix
        with self._translated(prefix):
            _make_directories(top.parent)
            failpoint("tree:begin")
            os.mkdir(top)
            directories = {top}
            for number, (path, data) in enumerate(sorted(files.items())):
                checked_path(path)
                file = top / path
                if file.parent not in directories:
                    os.mkdir(file.parent)
                    directories.add(file.parent)
                _write_durably(file, data)
                if number in (0, len(files) // 2):
                    failpoint("tree:first" if number == 0 else "tree:half")
            failpoint("tree:files")
            for directory in sorted(directories, reverse=True):
                _sync_directory(directory)
            failpoint("tree:directories")
            _sync_directory(top.parent)
            failpoint("tree:parent")

    def names(self, prefix: str) -> list[str]:
        """The names in a directory, without temporary ones; see `Store.names`."""
        directory = self.root / prefix if prefix else self.root
        with self._translated(prefix):
            try:
                return sorted(name for name in os.listdir(directory) if not name.startswith("."))
            except FileNotFoundError:
                return []

    def tree(self, prefix: str) -> dict[str, int]:
        """Every file below a directory and its size; see `Store.tree`."""
        top = self.root / prefix if prefix else self.root
        found: dict[str, int] = {}
        with self._translated(prefix):
            for directory, _, names in os.walk(top):
                for name in names:
                    file = Path(directory, name)
                    with contextlib.suppress(FileNotFoundError):  # a temporary file of a running writer
                        found[file.relative_to(top).as_posix()] = file.lstat().st_size
        return found

    def temporaries(self) -> dict[str, tuple[int, float]]:
        """Temporary files of `create`; see `Store.temporaries`."""
        found: dict[str, tuple[int, float]] = {}
        with self._translated(""):
            for directory, _, names in os.walk(self.root):
                for file in (Path(directory, name) for name in names if name[0] == "." and name.endswith(".tmp")):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.lstat()
                        found[file.relative_to(self.root).as_posix()] = (status.st_size, status.st_mtime)
        return found

    def changed(self, prefix: str) -> int | None:
        """The modification time of a directory in nanoseconds; see `Store.changed`."""
        checked_path(prefix)
        try:
            return os.stat(self.root / prefix).st_mtime_ns
        except OSError:
            return None

    def delete_tree(self, prefix: str) -> int:
        """Remove a directory or a file; see `Store.delete_tree`."""
        target = self.root / prefix
        with self._translated(prefix):
            if target.is_dir() and not target.is_symlink():
                freed = sum(self.tree(prefix).values())
                shutil.rmtree(target, ignore_errors=True)  # another process may remove the same garbage
                return freed
            try:
                freed = target.lstat().st_size
                target.unlink()
            except FileNotFoundError:
                return 0
            return freed

    def local_file(self, path: str) -> Path | None:
        """The file itself; see `Store.local_file`."""
        checked_path(path)
        return self.root / path

    def _open(self, path: str) -> int:
        """A descriptor of the file, reached from the root one directory at a time without following a link."""
        *parents, name = checked_path(path)
        directory = os.open(self.root, _DIRECTORY | os.O_CLOEXEC)
        try:
            for parent in parents:
                inner = os.open(parent, _DIRECTORY | _NO_LINK, dir_fd=directory)
                os.close(directory)
                directory = inner
            return os.open(name, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=directory)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn what the operating system raises into one line with the path and what to do."""
        where = self.root / path if path else self.root
        try:
            yield
        except CacheError:
            raise
        except FileNotFoundError:
            raise ObjectMissing(f"{where} not found") from None
        except OSError as error:
            where = Path(os.fsdecode(error.filename)) if error.filename else where
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafeObject(
                    f"{self.root / path}: a part of the path is a symbolic link, or not a directory; refused"
                ) from None
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"no space left while writing {where}; free some and start again; committed units are kept",
                ) from None
            raise StoreError(f"{where}: {error.strerror}") from None


def _write_durably(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directories(directory: Path) -> None:
    """Create a directory and its parents, each durable in its own parent."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, _DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
