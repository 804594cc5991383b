"""Writing a head: any number of workers at once. Killed at any point, they leave it whole or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

from storage.errors import CorruptObject, InvalidTargets, ObjectMissing, StaleAttempt
from storage.failpoints import failpoint
from storage.format.base import FormatVersion
from storage.format.chunks import encode_plain
from storage.format.head_table import HeadSizes
from storage.head.content import HeadContent
from storage.head.document import FIXED, GROUP, HEAD, HEAD_PATH, head_bytes, read_head_document, sizes_of
from storage.store.base import Store
from storage.units.attempts import SECONDS, attempt_name


def write_head(store: Store, version: FormatVersion, content: HeadContent, *, first: int = 0) -> str:
    """Write the head of a cache, or the missing part of it. Returns the digest of the head that the cache then has.

    Args:
        store: of the cache.
        version: its format.
        content: this worker's head. In a cache of kind exact it must equal the existing one; of a tail the first one wins.
        first: the chunk to begin with. Give the worker's number, so that workers share the work.

    Raises:
        InvalidTargets: the content is not what the specification demands, or the cache has the head of another teacher.
        CorruptObject: an existing object of the head is damaged.
    """
    sizes = sizes_of(version)
    content.checked(sizes)
    store.create(f"{HEAD}/zarr.json", GROUP)
    if sizes.attempts:
        return _write_attempt(store, version, content)
    objects = {}
    complete = store.size(HEAD_PATH) is not None
    for path, data in _objects(sizes, content, first):
        objects[path] = (len(data), hashlib.sha256(data).hexdigest())
        if not complete and not store.create(f"{FIXED}/{path}", data):
            _require_same(store, f"{FIXED}/{path}", objects[path])
    failpoint("head:objects")
    shapes = {name: array.shape for name, array in content.arrays.items()}
    document, digest = head_bytes(
        version, prefix=FIXED, scale=content.scale, softcap=content.softcap, shapes=shapes, objects=objects
    )
    if not complete:
        store.create(HEAD_PATH, document)
        failpoint("head:created")
    if (found := read_head_document(store, version).digest) != digest:
        raise InvalidTargets(
            f"{store.location}: its head is {found[:12]}, the teacher's is {digest[:12]}: another teacher wrote it, "
            "though its specification is the same; use another cache path"
        )
    return digest


def _objects(sizes: HeadSizes, content: HeadContent, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Every object of a head below its prefix, and its bytes; the chunks begin with number `first` and wrap around."""
    yield "zarr.json", GROUP
    chunks = []
    for name, array in content.arrays.items():
        yield f"{name}/zarr.json", sizes.document(name, array.shape)
        chunks += [(path, name, part) for path, part in sizes.chunks(name, array.shape).items()]
    start = first % max(1, len(chunks))
    for path, name, part in chunks[start:] + chunks[:start]:
        array = content.arrays[name]
        yield path, encode_plain(sizes.padded(name, array.shape, array[part]))


def _require_same(store: Store, path: str, own: tuple[int, str]) -> None:
    """Whoever created an object first must have written what we would."""
    where = f"{store.location}/{path}"
    try:
        data = store.read(path, limit=own[0])
    except ObjectMissing:
        raise CorruptObject(f"{where} was removed while it was written; start again", object=path) from None
    if (len(data), hashlib.sha256(data).hexdigest()) != own:
        raise InvalidTargets(
            f"{where} differs from this teacher's head: another teacher wrote it, though its specification is "
            "the same, or it is damaged; use another cache path, or remove the directory head and start again"
        )


def _write_attempt(store: Store, version: FormatVersion, content: HeadContent) -> str:
    """The head of a tail: the first writer to create the document decides."""
    try:
        return read_head_document(store, version).digest
    except ObjectMissing:
        pass
    sizes = sizes_of(version)
    prefix, began = f"{HEAD}/{attempt_name()}", time.time()
    files = dict(_objects(sizes, content))
    store.write_tree(prefix, files)
    failpoint("head:objects")
    if time.time() - began > SECONDS:
        raise StaleAttempt(f"{store.location}/{prefix}: writing the head took more than six days; start again")
    document, _ = head_bytes(
        version,
        prefix=prefix,
        scale=content.scale,
        softcap=content.softcap,
        shapes={name: array.shape for name, array in content.arrays.items()},
        objects={path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()},
    )
    store.create(HEAD_PATH, document)
    failpoint("head:created")
    found = read_head_document(store, version)
    if found.prefix != prefix:
        store.delete_tree(prefix)
    return found.digest
