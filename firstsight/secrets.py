"""Secrets are refused in a recipe, which is written into runs, reports and published folders, and masked in text that is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

MASK = "***"

_SECRET_WORDS = {"token", "password", "passwd", "secret", "apikey", "credential", "credentials"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("account", "key"), ("private", "key"), ("sas", "key")}
_SHAPES = re.compile(
    r"""
      \bhf_[A-Za-z0-9]{16,}                                   # Hugging Face
    | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,}     # GitHub
    | \bsk-[A-Za-z0-9_-]{20,}                                 # OpenAI, Anthropic
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                           # AWS
    | \bAIza[0-9A-Za-z_-]{30,}                                # Google
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)                         # user:password@host
    | (?<=[?&])(?:sig|X-Amz-Signature|X-Amz-Credential|X-Goog-Signature)=[^&\s'"]+
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    """,
    re.VERBOSE,
)
_ASSIGNED = re.compile(r"(\b[\w.]*(?:token|password|passwd|secret|api_?key|access_key)=)[^\s,]+", re.IGNORECASE)


def masked_text(text: str) -> str:
    """The text with everything that looks like a secret replaced by `***`."""
    return _ASSIGNED.sub(rf"\1{MASK}", _SHAPES.sub(MASK, text))


def masked(content: Any) -> Any:
    """YAML or JSON content with the values of secret keys and what looks like a secret replaced by `***`."""
    if isinstance(content, dict):
        return {key: MASK if _is_secret(key, value) else masked(value) for key, value in content.items()}
    if isinstance(content, list):
        return [masked(value) for value in content]
    return _SHAPES.sub(MASK, content) if isinstance(content, str) else content


def secret_places(content: Any, place: str = "") -> Iterator[str]:
    """The dotted names of values that are secrets by their key or their shape."""
    if isinstance(content, dict):
        for key, value in content.items():
            inner = f"{place}.{key}" if place else str(key)
            if _is_secret(key, value):
                yield inner
            else:
                yield from secret_places(value, inner)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from secret_places(value, f"{place}[{number}]")
    elif isinstance(content, str) and _SHAPES.search(content):
        yield place


def _is_secret(key: Any, value: Any) -> bool:
    """Whether a value is a secret by the name of its key. A key without a value gives nothing away, and true or 3 is no secret."""
    if not isinstance(value, str) or not value:
        return False
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key)).lower().replace("-", "_").split("_")
    return bool(_SECRET_WORDS.intersection(words)) or any(pair in _SECRET_PAIRS for pair in pairwise(words))
