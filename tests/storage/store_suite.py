"""What every store must do. A store's tests inherit `StoreSuite` and give the fixture `store`, an empty store."""

from __future__ import annotations

import pytest
from storage_cases import (
    KINDS,
    assert_holds,
    head_of,
    key_of,
    open_kind,
    sample_of,
    sample_of_kind,
    spec_of,
    spec_of_kind,
    write_cache,
    write_unit,
)

from storage.errors import (
    CacheMissing,
    CorruptObject,
    InvalidTargets,
    ObjectMissing,
    SpecMismatch,
    UnsafeObject,
)
from storage.head.reading import Head
from storage.index import INDEX, INDEX_NAME
from storage.maintenance.gc import collect_garbage
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.store import open_store
from storage.writer import create_cache

BAD_NAMES = ["..", "../x", "a/../b", "/etc/passwd", "a//b", "", ".hidden", "a/.x", "a\\..\\b", "a\0b"]


class StoreSuite:
    """Objects one by one, then whole caches."""

    def test_an_empty_store(self, store):
        assert store.names("plans") == []
        assert store.tree("units") == {}
        assert store.size("zarr.json") is None
        assert store.delete_tree("units/none") == 0
        with pytest.raises(ObjectMissing, match=r"plans/x not found"):
            store.read("plans/x", limit=9)
        with pytest.raises(ObjectMissing):
            store.read_many({"plans/x": 9})
        with pytest.raises(CacheMissing, match=r"no cache at .*zarr\.json not found; check the path"):
            open_cache(store)

    def test_an_object_is_created_once(self, store):
        assert store.create("plans/x", b"12345") is True
        assert store.create("plans/x", b"other") is False
        assert store.read("plans/x", limit=5) == b"12345"
        assert store.size("plans/x") == 5
        assert store.create("plans/empty", b"") is True
        assert store.read("plans/empty", limit=0) == b""
        assert store.temporaries() == {}

    def test_no_more_is_read_than_expected(self, store):
        store.create("plans/x", b"12345")
        with pytest.raises(UnsafeObject, match="has 5 bytes, expected at most 4; refused"):
            store.read("plans/x", limit=4)
        with pytest.raises(UnsafeObject):
            store.read_many({"plans/x": 4})

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_names_that_could_leave_the_cache(self, store, name):
        for operation in (
            lambda: store.read(name, limit=9),
            lambda: store.size(name),
            lambda: store.create(name, b"1"),
            lambda: store.write_tree("units/fresh", {name: b"1"}),
            lambda: store.local_file(name),
            lambda: store.changed(name),
        ):
            with pytest.raises(UnsafeObject, match="not a valid object name"):
                operation()

    def test_a_tree(self, store):
        files = {"zarr.json": b"{}", "gap/c.0.0": b"123", "gap/zarr.json": b"{}"}
        store.create("units/zarr.json", b"{}")
        store.write_tree("units/000000-000000.a", files)
        assert store.names("units") == ["000000-000000.a", "zarr.json"]
        assert store.names("units/000000-000000.a") == ["gap", "zarr.json"]
        assert store.tree("units/000000-000000.a") == {path: len(data) for path, data in files.items()}
        limits = {f"units/000000-000000.a/{path}": len(data) for path, data in files.items()}
        assert [*store.read_many(limits).values()] == [*files.values()]
        assert store.delete_tree("units/000000-000000.a/gap/c.0.0") == 3
        assert store.delete_tree("units/000000-000000.a") == 4
        assert store.names("units") == ["zarr.json"]

    def test_a_change_below_a_prefix_is_seen_or_unknown(self, store):
        store.create("manifests/a", b"1")
        before = store.changed("manifests")
        store.create("manifests/b", b"1")
        assert before is None or store.changed("manifests") != before

    def test_a_local_file_is_the_object(self, store):
        store.create("index/x", b"12345")
        file = store.local_file("index/x")
        assert file is None or file.read_bytes() == b"12345"

    def test_an_open_store_is_a_location(self, store):
        assert open_store(store) is store

    @pytest.mark.parametrize("kind", KINDS)
    def test_round_trip_and_commands(self, store, kind):
        spec = spec_of_kind(kind)
        samples = [sample_of_kind(kind, number) for number in range(8)]
        write_cache(store, samples, spec=spec)
        cache = open_kind(store)
        assert_holds(cache, samples)
        assert cache.location == store.location
        assert verify_cache(store).ok()
        assert cache_status(store).committed == 2
        assert collect_garbage(store).removed == []
        with pytest.raises(SpecMismatch, match=r"teacher: the cache has .*, the request has 4"):
            create_cache(store, {**spec, "teacher": 4})

    @pytest.mark.parametrize("kind", ["exact", "tail"])
    def test_a_head_is_written_once_by_whoever_comes(self, store, kind):
        spec = spec_of_kind(kind)
        content = head_of(spec)
        digests = {create_cache(store, spec).write_head(content, first=worker) for worker in range(4)}
        assert len(digests) == 1
        head = Head(store, create_cache(store, spec).version)
        assert (head.digest, head.scale, head.softcap) == (*digests, content.scale, content.softcap)
        for name, array in content.arrays.items():
            assert head.array(name).tobytes() == array.tobytes()
        assert verify_cache(store).ok()
        assert cache_status(store).head_bytes >= head.nbytes

    def test_the_head_of_another_teacher_is_refused(self, store):
        spec = spec_of_kind("exact")
        create_cache(store, spec).write_head(head_of(spec))
        with pytest.raises(InvalidTargets, match="another teacher wrote it"):
            create_cache(store, spec).write_head(head_of(spec, seed=1))

    def test_a_head_half_written_by_another_teacher_is_refused(self, store):
        spec = spec_of_kind("exact")
        create_cache(store, spec).write_head(head_of(spec))
        store.delete_tree("head/head.json")
        with pytest.raises(InvalidTargets, match="differs from this teacher's head: another teacher wrote it"):
            create_cache(store, spec).write_head(head_of(spec, seed=1))
        assert create_cache(store, spec).write_head(head_of(spec))

    def test_a_unit_needs_the_head_of_its_writer(self, store):
        spec = spec_of_kind("exact")
        sample = sample_of_kind("exact", 0)
        writer = create_cache(store, spec)
        writer.plan([PlannedSample(sample.key, 10)])
        (unit,) = writer.pending()
        with pytest.raises(InvalidTargets, match="write the head before the first unit; nothing was committed"):
            write_unit(writer, unit, {sample.key: sample})
        writer.write_head(head_of(spec))
        other = create_cache(store, spec)
        other.head = "0" * 64
        with pytest.raises(InvalidTargets, match=r"the cache's head is .*, this writer's is 000000000000; nothing"):
            write_unit(other, unit, {sample.key: sample})
        assert write_unit(writer, unit, {sample.key: sample}) is True
        assert verify_cache(store).ok()

    def test_content_is_that_of_any_other_store(self, store, tmp_path):
        samples = [sample_of(number) for number in range(4)]
        write_cache(store, samples)
        write_cache(tmp_path / "cache", samples)
        assert open_cache(store).digest == open_cache(tmp_path / "cache").digest

    def test_scratch_keeps_units_and_the_index_of_a_store_without_files(self, store, tmp_path, monkeypatch):
        samples = [sample_of(number) for number in range(8)]
        write_cache(store, samples)
        assert_holds(open_cache(store, scratch=tmp_path / "scratch"), samples)
        own = store.local_file(f"{INDEX}/{INDEX_NAME}")
        indices = list((tmp_path / "scratch").glob("*.bin"))
        assert own.exists() if own else len(indices) == 1
        monkeypatch.setattr("storage.reader.load_unit", None)
        if own is None:
            monkeypatch.setattr("storage.reader.index_rows", None)
        assert_holds(open_cache(store, scratch=tmp_path / "scratch"), samples)

    def test_a_damaged_object_is_named(self, store):
        write_cache(store, [sample_of(0)])
        (unit,) = [name for name in store.names("units") if name != "zarr.json"]
        path = f"units/{unit}/gap/c.0.0"
        data = bytearray(store.read(path, limit=10**6))
        data[7] ^= 4
        store.delete_tree(path)
        assert store.create(path, bytes(data))
        with pytest.raises(CorruptObject, match="gap") as caught:
            open_cache(store)[key_of(0)]
        assert caught.value.array == "gap"
        assert [problem.array for problem in verify_cache(store).problems] == ["gap"]

    def test_the_loser_of_a_unit_knows_and_leaves_nothing(self, store):
        first, second = create_cache(store, spec_of()), create_cache(store, spec_of())
        sample = sample_of(0)
        first.plan([PlannedSample(sample.key, 10)])
        (unit,) = first.pending()
        with first.unit(unit) as ours:
            ours.append(sample)
            assert write_unit(second, unit, {sample.key: sample}) is True
        assert ours.won is False
        assert len(store.names("units")) == 2  # the winner's data and the group's own document
        assert first.plan([PlannedSample(sample.key, 10)]) == 0
        assert verify_cache(store).ok()

    def test_an_exception_in_the_block_writes_nothing(self, store):
        writer = create_cache(store, spec_of())
        sample = sample_of(0)
        writer.plan([PlannedSample(sample.key, 10)])
        before = store.tree("")
        (unit,) = writer.pending()
        with pytest.raises(KeyboardInterrupt), writer.unit(unit) as out:  # noqa: PT012
            out.append(sample)
            raise KeyboardInterrupt
        assert store.tree("") == before
        assert write_unit(writer, unit, {sample.key: sample}) is True
