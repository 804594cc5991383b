"""Arrays of one chunk and of several: what is written is what plain zarr and our own reader give back."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from storage.format.chunks import ChunkError, array_document, chunk_paths, decode_chunk, encode_array, join_chunks
from storage.format.table import Array, Axis, Counts, Table

TABLE = Table[None](
    arrays=[
        Array(
            "state",
            ("uint16",),
            (Axis("position", "P", lambda counts, _: counts.positions), Axis("dimension", "3", lambda *_: 3)),
            "what the head sees",
            chunk=4,
        )
    ],
    attributes=[],
)


@pytest.mark.parametrize("positions", [0, 1, 3, 4, 5, 8, 9])
def test_an_array_of_several_chunks(tmp_path, positions):
    state = np.arange(3 * positions, dtype=np.uint16).reshape(positions, 3)
    array = TABLE.arrays["state"]
    chunk_shape = array.chunk_shape(state.shape)
    encoded = encode_array(state, chunk_shape)
    assert list(encoded) == [f"c.{number}.0" for number in range(-(-positions // 4))]
    assert list(TABLE.chunks("state", state.shape)) == [f"state/{name}" for name in encoded]
    assert TABLE.objects({"state": ("uint16", state.shape)}) == {
        "zarr.json",
        "state/zarr.json",
        *(f"state/{name}" for name in encoded),
    }
    counts = Counts(samples=1, positions=positions, soft_positions=positions)
    assert TABLE.problem({}, {"state": ("uint16", state.shape)}, counts, None) is None
    (tmp_path / "zarr.json").write_bytes(TABLE.document("state", "uint16", state.shape))
    for name, data in encoded.items():
        (tmp_path / name).write_bytes(data)
    np.testing.assert_array_equal(zarr.open_array(tmp_path, mode="r")[...], state)
    parts = chunk_paths(state.shape, chunk_shape)
    chunks = [(part, decode_chunk(encoded[name], state.dtype, chunk_shape)) for name, part in parts.items()]
    for part, chunk in chunks:
        np.testing.assert_array_equal(chunk[: len(state[part])], state[part])
        assert not chunk[len(state[part]) :].any()  # padding
    np.testing.assert_array_equal(join_chunks(chunks, state.dtype, state.shape), state)


def test_a_chunk_of_another_size_is_refused():
    (data,) = encode_array(np.zeros((4, 3), np.uint16), (4, 3)).values()
    with pytest.raises(ChunkError, match="claims 24 bytes, the array has 18"):
        decode_chunk(data, np.dtype(np.uint16), (3, 3))


def test_the_document_of_an_array_of_one_chunk_is_what_it_was():
    found = array_document(np.dtype(np.uint8), (2, 0), (2, 1), ("rank", "soft_position"))
    assert b'"chunk_shape":[2,1]' in found
    assert b'"shape":[2,0]' in found
