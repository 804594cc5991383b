"""Format version 2: every array of a unit of either kind (docs/FORMAT.md, "Units of version 2").

Axis legend: S samples, A turns, P positions, Q soft positions (Q <= P), r directions, D numbers in a state of B bytes each.
"""

from __future__ import annotations

from typing import Any

from storage.format.layout import Layout
from storage.format.table import Array, Axis, Table
from storage.format.v1 import arrays as v1
from storage.format.v2.layout import STATE_CHUNK, ExactLayout

SAMPLE = Axis[Any]("sample", "S", lambda counts, _: counts.samples)
FIELD = Axis[Any]("field", "2", lambda *_: 2)
TURN = Axis[Any]("turn", "A", lambda counts, _: counts.samples + counts.positions, own=True)
POSITION = Axis[Any]("position", "P", lambda counts, _: counts.positions)
DIRECTION = Axis[Layout]("direction", "r", lambda _, layout: layout.tail_rank)
DIMENSION = Axis[ExactLayout]("dimension", "D", lambda _, layout: layout.hidden_size)
LOW_BYTE = Axis[ExactLayout]("byte", "(B - 1) D", lambda _, layout: (layout.bits.itemsize - 1) * layout.hidden_size)

KEYS: Array[Any] = v1.TABLE.arrays["keys"]
SAMPLES = Array[Any]("samples", ("uint32",), (SAMPLE, FIELD), "number of answer positions; number of turns, at least 1")
TURNS = Array[Any](
    "turns",
    ("uint32",),
    (TURN, FIELD),
    "number of answer positions; 1 if the target ids are ground truth, 0 if the teacher's own answer",
)
TAIL_COEFFICIENT = Array[Layout](
    "tail_coefficient",
    ("int8", "float16"),
    (DIRECTION, v1.SOFT_POSITION),
    "the state's coordinates on the directions of the head object, in units of `scale`",
)
_OTHERS = [array for name, array in v1.TABLE.arrays.items() if name != "samples"]
_ATTRIBUTES = [*v1.TABLE.attributes.values()]
TOP_K_TABLE = Table[Layout](arrays=[SAMPLES, TURNS, *_OTHERS], attributes=_ATTRIBUTES)
TAIL_TABLE = Table[Layout](arrays=[SAMPLES, TURNS, TAIL_COEFFICIENT, *_OTHERS], attributes=_ATTRIBUTES)
EXACT_TABLE = Table[ExactLayout](
    arrays=[
        KEYS,
        SAMPLES,
        TURNS,
        Array("target", ("uint32",), (POSITION,), "the answer's own token as a **teacher** id, below H"),
        Array(
            "state_high",
            ("uint8",),
            (POSITION, DIMENSION),
            "the highest byte of every number of the state, see below",
            chunk=STATE_CHUNK,
        ),
        Array(
            "state_low",
            ("uint8",),
            (POSITION, LOW_BYTE),
            "the other bytes: all second highest ones of a position, then all third highest ones ...",
            chunk=STATE_CHUNK,
        ),
    ],
    attributes=[],
)
