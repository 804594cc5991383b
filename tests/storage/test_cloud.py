"""A cache in a bucket: against a real S3 protocol server on loopback, and true races through a lock-stepped fake."""

from __future__ import annotations

import http.client
import http.server
import logging
import multiprocessing
import os
import pickle
import threading
import urllib.request

import pytest
from storage_cases import assert_holds, assert_stored, key_of, sample_of, spec_of, write_cache, write_unit

from storage.errors import CacheMissing, CorruptObject, ObjectMissing, PlaceError, SpecMismatch, UnsafeObject
from storage.maintenance.gc import collect_garbage
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.store.base import open_place
from storage.writer import CacheWriter, create_cache

obstore = pytest.importorskip("obstore") if os.environ.get("FIRSTSIGHT_CI") != "1" else __import__("obstore")


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Forwards to the S3 server; may lose the answer to one request after it was carried out."""

    upstream = ""
    lose: str | None = None
    lost = 0

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kind = type(self)
        if kind.lose and self.command == "PUT" and kind.lose in self.path:
            kind.lose, kind.lost = None, kind.lost + 1
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True


@pytest.fixture(scope="module")
def bucket():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    _Proxy.upstream = f"{host}:{port}"
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{proxy.server_port}"
    request = urllib.request.Request(f"http://{host}:{port}/caches", method="PUT")
    urllib.request.urlopen(request).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT", endpoint)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        yield "s3://caches"
    proxy.shutdown()
    proxy.server_close()
    server.stop()


@pytest.fixture
def location(bucket, request):
    return f"{bucket}/{request.node.name.replace('[', '-').strip(']')}/cache"


def test_round_trip_and_commands(location):
    samples = [sample_of(number) for number in range(8)]
    write_cache(location, samples)
    cache = open_cache(location)
    assert_holds(cache, samples)
    assert verify_cache(location).ok()
    assert cache_status(location).committed == 2
    assert collect_garbage(location).removed == []
    assert pickle.loads(pickle.dumps(cache)).digest == cache.digest
    with pytest.raises(SpecMismatch, match="top_k: the cache has 8, requested is 4"):
        create_cache(location, spec_of(top_k=4))


def test_equals_a_local_cache(location, tmp_path):
    samples = [sample_of(number) for number in range(4)]
    write_cache(location, samples)
    write_cache(tmp_path / "cache", samples)
    assert open_cache(location).digest == open_cache(tmp_path / "cache").digest


def test_scratch_keeps_index_and_units(location, tmp_path, monkeypatch):
    samples = [sample_of(number) for number in range(8)]
    write_cache(location, samples)
    assert_holds(open_cache(location, scratch=tmp_path), samples)
    monkeypatch.setattr("storage.reader.index_rows", None)
    monkeypatch.setattr("storage.reader.load_unit", None)
    assert_holds(open_cache(location, scratch=tmp_path), samples)


def test_missing_and_too_large_objects(location):
    with pytest.raises(CacheMissing, match=r"no cache at s3://"):
        open_cache(location)
    place = open_place(location)
    assert place.create("plans/x", b"12345")
    with pytest.raises(UnsafeObject, match="has 5 bytes, expected at most 4"):
        place.read("plans/x", limit=4)
    with pytest.raises(ObjectMissing, match="plans/y is not there"):
        place.read("plans/y", limit=4)
    with pytest.raises(UnsafeObject):
        place.read("../plans/x", limit=9)


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(PlaceError, match=r"s3://no-such-bucket/cache"):
        create_cache("s3://no-such-bucket/cache", spec_of())


def test_a_damaged_object_is_named(location):
    write_cache(location, [sample_of(0)])
    place = open_place(location)
    (unit,) = [name for name in place.names("units") if name != "zarr.json"]
    path = f"units/{unit}/gap/c.0.0"
    data = bytearray(place.read(path, limit=10**6))
    data[7] ^= 4
    place.delete_tree(path)
    assert place.create(path, bytes(data))
    with pytest.raises(CorruptObject, match="gap") as caught:
        open_cache(location)[key_of(0)]
    assert caught.value.array == "gap"
    assert [problem.array for problem in verify_cache(location).problems] == ["gap"]


def test_conflict_in_sequence(location):
    sample = sample_of(0)
    writer = create_cache(location, spec_of())
    writer.plan([PlannedSample(sample.key, 10)])
    (unit,) = writer.pending()
    with writer.unit(unit) as ours:
        ours.append(sample)
        assert write_unit(create_cache(location, spec_of()), unit, {sample.key: sample}) is True
    assert ours.won is False
    assert len(open_place(location).names("units")) == 2  # the winner's data and the group's own document
    assert writer.plan([PlannedSample(sample.key, 10)]) == 0


@pytest.mark.parametrize("what", ["manifests/000000", "plans/000000", "cache/zarr.json"])
def test_a_lost_response_is_not_a_lost_race(location, what):
    """The put succeeds, its answer is lost, the retry hears that the object exists: it is our own."""
    sample = sample_of(0)
    _Proxy.lose, before = what, _Proxy.lost
    writer = create_cache(location, spec_of())
    assert writer.plan([PlannedSample(sample.key, 10)]) == 1
    assert write_unit(writer, writer.pending()[0], {sample.key: sample}) is True
    assert _Proxy.lost == before + 1
    assert_holds(open_cache(location), [sample])
    assert verify_cache(location).ok()


def _read_in_worker(cache, key):
    return cache[key]


def test_spawned_workers(location):
    samples = {sample.key: sample for sample in (sample_of(number) for number in range(4))}
    write_cache(location, samples.values())
    cache = open_cache(location)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_stored(samples[key_of(1)], pool.apply(_read_in_worker, (cache, key_of(1))))


def test_a_forked_worker_is_told_what_to_do(location):
    """The client's runtime does not survive a fork: better an error with advice than a process that hangs."""
    write_cache(location, [sample_of(0)])
    cache = open_cache(location)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            cache[key_of(0)]
            sender.send("read")
        except PlaceError as error:
            sender.send(str(error))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert receiver.poll(0)
    assert "start workers with the spawn method" in receiver.recv()


class LockStepped:
    """An object store in memory in which two creations of the same object always meet."""

    location = "fake://cache"

    def __init__(self, meet: str, parties: int, *, lose_answers: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self._meet = meet
        self._barrier = threading.Barrier(parties)
        self._lock = threading.Lock()
        self._lose_answers = lose_answers

    def read(self, path, *, limit):
        if path not in self.objects:
            raise ObjectMissing(path)
        return self.objects[path]

    def read_many(self, limits):
        return {path: self.read(path, limit=limit) for path, limit in limits.items()}

    def size(self, path):
        return len(self.objects[path]) if path in self.objects else None

    def create(self, path, data):
        if path.startswith(self._meet) and path not in self.objects:
            self._barrier.wait(timeout=30)
        with self._lock:
            created = self.objects.setdefault(path, data) is data
        return created and not self._lose_answers

    def write_tree(self, prefix, files):
        self.objects.update({f"{prefix}/{path}": data for path, data in files.items()})

    def names(self, prefix):
        start = f"{prefix}/" if prefix else ""
        return sorted({path[len(start) :].split("/")[0] for path in list(self.objects) if path.startswith(start)})

    def tree(self, prefix):
        return {
            path[len(prefix) + 1 :]: len(self.objects[path])
            for path in list(self.objects)
            if path.startswith(prefix + "/")
        }

    def temporaries(self):
        return {}

    def changed(self, prefix):
        return None

    def delete_tree(self, prefix):
        for path in self.tree(prefix):
            del self.objects[f"{prefix}/{path}"]
        return 0


def _threads(count, work):
    results: list = [None] * count

    def run(number):
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _fake_writer(place):
    from storage.spec import complete_spec

    return CacheWriter(place, complete_spec(spec_of()))


@pytest.mark.parametrize("lose_answers", [False, True])
def test_true_race_for_a_unit(lose_answers):
    place = LockStepped("manifests/", 3, lose_answers=lose_answers)
    sample = sample_of(0)
    _fake_writer(LockStepped("nothing", 1))
    writers = [_fake_writer(place) for _ in range(3)]
    place._lose_answers = False
    writers[0].plan([PlannedSample(sample.key, 10)])
    place._lose_answers = lose_answers
    (unit,) = writers[0].units()
    won = _threads(3, lambda number: write_unit(writers[number], unit, {sample.key: sample}))
    assert sorted(won) == [False, False, True]
    attempts = [name for name in place.names("units") if name.startswith(unit.name)]
    assert len(attempts) == 1
    assert attempts[0].encode().split(b".")[1] in place.objects[f"manifests/{unit.name}.json"]


def test_true_race_for_a_plan():
    place = LockStepped("plans/000000", 2)
    writers = [_fake_writer(place) for _ in range(2)]
    shares = [range(6), range(3, 9)]
    added = _threads(
        2,
        lambda number: writers[number].plan([PlannedSample(key_of(n), 10) for n in shares[number]], unit_positions=20),
    )
    assert sorted(added) == [3, 6]
    keys = [key for unit in writers[0].units() for key in unit.keys]
    assert sorted(keys) == sorted(key_of(number) for number in range(9))
