"""Numbers in messages: `1 sample`, `2 samples`, `1,234 samples`; one way for all that a user reads."""

from __future__ import annotations


def counted(count: float, one: str, many: str | None = None) -> str:
    """A number and what is counted.

    Args:
        count: whole.
        one: what follows where it is 1, such as `sample` or `sample is`.
        many: what follows any other number; None: `one` with an s.
    """
    return f"{count:,.0f} {one if count == 1 else many or f'{one}s'}"
