"""The section of a recipe that describes the distillation loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from firstsight.recipe_yaml import Section, Unit

_BETAS = {"skewed_kl": 0.1, "js": 0.5}
"""Divergences that have a `loss.beta`, and its default."""


class LossSection(Section):
    """The distillation loss: alpha * divergence at a temperature + (1 - alpha) * cross-entropy."""

    temperature: Annotated[float, Field(gt=0), Unit("none")] = 1.0
    """Temperature of teacher and student in the divergence: within the range of `cache.temperatures`; any above 0 on exact targets."""
    alpha: Annotated[float, Field(ge=0, le=1), Unit("none")] = 0.7
    """Weight of the divergence; 0: hard labels only."""
    divergence: Literal["forward_kl", "reverse_kl", "skewed_kl", "js", "tv"] = "forward_kl"
    """What is minimised between teacher p and student q. `forward_kl`: KL(p || q); `reverse_kl`: KL(q || p); `skewed_kl`:
    KL(p || beta p + (1 - beta) q); `js`: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; `tv`: half the
    sum of |p - q|. On a top_k cache without `cache.tail_rank` it counts the stored entries, and the rest as one outcome: a lower
    bound."""
    beta: Annotated[float | None, Field(validate_default=True), Unit("none")] = None
    """Parameter of `skewed_kl` (default 0.1) and `js` (default 0.5), above 0 and below 1; the other divergences have none."""
    tail: Literal["shape", "bucket", "renormalize", "none"] | None = None
    """What replaces the entries that are not stored, on a top_k cache. `shape`: the tail as it was spread, on a cache with
    `cache.tail_rank`, so that the divergence is that of whole distributions; `bucket`: the rest as one outcome; `renormalize`:
    teacher and student conditioned on the stored entries; `none`: the sum over the stored entries alone. null: `shape` if the
    cache has it, else `bucket`."""

    @property
    def without_effect(self) -> frozenset[str]:
        """Keys of this section that change no weights: those of the divergence where alpha is 0, `beta` where it has none."""
        if self.alpha == 0:
            return frozenset({"temperature", "divergence", "beta", "tail"})
        return frozenset() if self.divergence in _BETAS else frozenset({"beta"})

    @field_validator("beta")
    @classmethod
    def _beta_of_the_divergence(cls, value: float | None, info: ValidationInfo) -> float | None:
        divergence = info.data.get("divergence")
        if value is None or divergence is None:  # a divergence that does not exist is reported by its own field
            return _BETAS.get(str(divergence))
        if divergence not in _BETAS:
            raise ValueError(
                f"{divergence} has no beta; remove the key, or choose a divergence that has one: {', '.join(_BETAS)}"
            )
        if not 0 < value < 1:
            ends = {
                "skewed_kl": "forward_kl is its limit at 0",
                "js": "forward_kl and reverse_kl are its limits at 0 and 1",
            }
            raise ValueError(f"must lie between 0 and 1, both excluded ({ends[divergence]})")
        return value
