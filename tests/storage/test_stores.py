"""The stores that need no service: what every store must do."""

import pickle

import pytest
from memory_store import MemoryStore
from storage_cases import sample_of, write_cache
from store_suite import StoreSuite

from storage.reader import open_cache
from storage.store import open_store


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "store")

    def test_a_cache_is_opened_again_by_its_location(self, store):
        write_cache(store, [sample_of(0)])
        cache = open_cache(store)
        assert pickle.loads(pickle.dumps(cache)).digest == cache.digest == open_cache(store.location).digest


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self):
        return MemoryStore()
