"""A cache in a bucket, against a real S3 protocol server on loopback."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re

import pytest
from optional_packages import optional_package
from storage_cases import assert_holds, assert_stored, key_of, sample_of, spec_of, write_cache, write_unit
from store_suite import StoreSuite

from storage.errors import StoreError
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.store import open_store
from storage.writer import create_cache

obstore = optional_package("obstore")


@pytest.fixture
def location(bucket, request):
    name = re.sub(r"[^A-Za-z0-9_-]", "-", request.node.name)
    return f"{bucket}/{name}/cache"


class TestObjectStore(StoreSuite):
    @pytest.fixture
    def store(self, location):
        return open_store(location)

    def test_a_cache_is_opened_again_by_its_location(self, store):
        write_cache(store, [sample_of(0)])
        cache = open_cache(store)
        assert pickle.loads(pickle.dumps(cache)).digest == cache.digest == open_cache(store.location).digest


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_does_not_exist():
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/cache"):
        create_cache("s3://no-such-bucket/cache", spec_of())


@pytest.mark.parametrize("what", ["manifests/000000", "plans/000000", "cache/zarr.json"])
def test_a_lost_response_is_not_a_lost_race(proxy, location, what):
    """The put succeeds, its answer is lost, the retry hears that the object exists: it is our own."""
    sample = sample_of(0)
    proxy.lose, before = what, proxy.lost
    writer = create_cache(location, spec_of())
    assert writer.plan([PlannedSample(sample.key, 10)]) == 1
    assert write_unit(writer, writer.pending()[0], {sample.key: sample}) is True
    assert proxy.lost == before + 1
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
        except StoreError as error:
            sender.send(str(error))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert receiver.poll(0)
    assert "start workers with the spawn method" in receiver.recv()
