"""Format version 1: every array and attribute of a unit (docs/FORMAT.md, "Units").

Axis legend: S samples, P positions, Q soft positions (Q <= P), K stored entries, n node temperatures.
"""

from __future__ import annotations

from storage.format.layout import Layout
from storage.format.table import Array, Attribute, Axis, Counts, Table

VALUE_STEP = 3 / 64  # nats; uniform rounding leaves a mean head KL of at most step^2 / 24 = 9.2e-5
TAIL_STEP = 1 / 128  # nats
TAIL_ORIGIN = 16.0  # nats; no tail of a vocabulary below e^16 lies above it


def _entries(counts: Counts, layout: Layout) -> int:
    return counts.soft_positions * layout.top_k


def _words(counts: Counts, layout: Layout) -> int:
    return min(_entries(counts, layout), layout.vocabulary_size)


SAMPLE = Axis[Layout]("sample", "S", lambda counts, _: counts.samples)
BYTE = Axis[Layout]("byte", "32", lambda *_: 32)
FIELD = Axis[Layout]("field", "2", lambda *_: 2)
POSITION = Axis[Layout]("position", "P", lambda counts, _: counts.positions)
SOFT_POSITION = Axis[Layout]("soft_position", "Q", lambda counts, _: counts.soft_positions)
RANK = Axis[Layout]("rank", "K", lambda _, layout: layout.top_k)
RANK_PAIR = Axis[Layout]("rank_pair", "ceil(K / 2)", lambda _, layout: (layout.top_k + 1) // 2)
TEMPERATURE = Axis[Layout]("temperature", "n", lambda _, layout: len(layout.temperatures))
ESCAPES = Axis[Layout]("escape", "", _entries)
EXTRAS = Axis[Layout]("extra", "", _entries)
WORDS = Axis[Layout]("word", "", _words)

TABLE = Table[Layout](
    arrays=[
        Array(
            "keys",
            ("uint8",),
            (SAMPLE, BYTE),
            "the sample keys as bytes, in planned order without the skipped ones",
        ),
        Array(
            "samples",
            ("uint32",),
            (SAMPLE, FIELD),
            "number of answer positions; 1 if the target ids are ground truth, 0 if the teacher's own answer",
        ),
        Array(
            "target",
            ("uint32",),
            (POSITION,),
            "below K: soft position, the rank of the target id among the stored entries. "
            "Else: K + target id, no soft target here",
        ),
        Array("target_logprob", ("float16",), (SOFT_POSITION,), "v of the target id, nats, rounded to nearest"),
        Array("gap", ("uint8",), (RANK_PAIR, SOFT_POSITION), "two gaps, see below"),
        Array("gap_escape", ("uint32",), (ESCAPES,), "gaps of 15 and more"),
        Array(
            "tail",
            ("uint16",),
            (TEMPERATURE, SOFT_POSITION),
            "codes of the tail log-mass, as differences along the temperatures",
        ),
        Array("id_token", ("uint8",), (RANK, SOFT_POSITION), "see below"),
        Array("id_extra", ("uint8", "uint16"), (EXTRAS,), "see below"),
        Array(
            "id_dictionary",
            ("uint32",),
            (WORDS,),
            "the distinct ids of the unit, as differences modulo 2^32",
        ),
    ],
    attributes=[
        Attribute("value_step", 0, 1000),
        Attribute("tail_step", 0, 1000),
        Attribute("tail_origin", 0, 1000),
        Attribute("direct", 0, 256, whole=True),
    ],
)
