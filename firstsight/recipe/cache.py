"""The section of a recipe that describes the cache of soft targets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from firstsight.recipe_yaml import Place, Section, Unit

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)},
}


def _bytes(value: Any) -> Any:
    """A number of bytes from text such as `512 MiB` or `2 GB`; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("must be a number of bytes, or a size such as 512 MiB or 2 GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


class CacheSection(Section):
    """The cache of soft targets."""

    path: Annotated[str, Place()] = "cache.zarr"
    """Directory, or s3:// gs:// az:// prefix."""
    targets: Literal["top_k", "exact"] = "top_k"
    """What is stored of every answer position. `top_k`: the largest log-probabilities, for this student's vocabulary. `exact`:
    the hidden state from which the teacher's head computes its logits, for any student, temperature and divergence; about 1.4 bytes
    per number of the state, plus the head, once."""
    top_k: Annotated[int, Field(ge=2, le=65_535), Unit("entries")] = 64
    """Stored entries per answer position (only with `targets: top_k`). The answer's own token is one of them, the teacher's most likely
    one another."""
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), Unit("none")] = (
        1.0,
        1.5,
        2.0,
        4.0,
    )
    """Node temperatures at which the mass of the tail is stored (only with `targets: top_k`); training may use any
    temperature between them."""
    tail_rank: Annotated[int | None, Field(ge=1, le=1024), Unit("numbers per answer position")] = None
    """Numbers per answer position that describe how the tail is spread over the entries that are not stored (only with
    `targets: top_k`): the teacher's state, projected on the directions that carry most of the logits' variance. The effect of each
    direction on the logits is stored once per cache. A rank of 64 adds about 50 bytes per position. null: the mass of the tail alone."""
    unit_positions: Annotated[int, Field(gt=0), Unit("answer positions")] = 4096
    """Answer positions of one unit of work."""
    on_error: Literal["stop", "skip"] = "stop"
    """`skip`: a sample that cannot be used is left out by name, and dump, training and evaluation continue; later dumps try it again."""
    generate_missing: bool = False
    """The teacher answers the samples that have no answer; training applies no hard-label loss to them."""
    generate_max_tokens: Annotated[int, Field(ge=1), Unit("tokens")] = 128
    """Longest generated answer, end of turn included; a dump takes this key and the next two only beside `generate_missing`."""
    generate_temperature: Annotated[float, Field(ge=0), Unit("none")] = 0.0
    """0: greedy; else the answers are sampled at this temperature."""
    generate_seed: Annotated[int, Field(ge=0), Unit("none")] = 0
    """Seed of sampled answers."""
    memory: Annotated[int, BeforeValidator(_bytes), Field(gt=0), Unit("bytes")] = 256 * 2**20
    """Bytes of decoded units that a training run or an evaluation keeps in memory, in each of its processes: a whole number, or a
    size such as `512 MiB`."""
    scratch: Path | None = None
    """Local directory for decoded units, shared by all processes on a machine; relative to the recipe. For a shuffled pass over
    a cache that is much larger than `memory`, or that lies in a bucket. null: none."""

    @field_validator("top_k", "temperatures", "tail_rank", mode="before")
    @classmethod
    def _of_top_k_alone(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a key that exact targets do not use."""
        if info.data.get("targets") == "exact":
            raise ValueError(
                "has no effect with cache.targets: exact, which stores whole distributions; remove the key"
            )
        return value

    def effective(self) -> dict[str, Any]:
        """The section as plain YAML types, without the keys that `targets` does not use."""
        return self.model_dump(
            mode="json", exclude={"top_k", "temperatures", "tail_rank"} if self.targets == "exact" else None
        )

    @field_validator("temperatures")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must be in ascending order, each once")
        if value[0] > 1.0:
            raise ValueError("must begin at 1 or below: the stored log-probabilities are those of T = 1")
        return value
