"""Texts in the form in which they are compared: one form of Unicode, words without punctuation, numbers unchanged.

SQuAD's script removes all punctuation, which turns 1.5 into 15, -5 into 5 and 10:30 into 1030. Here punctuation inside a number
and the sign before it stay, except for commas between thousands.
"""

from __future__ import annotations

import re
import string
import unicodedata

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_QUOTES = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-", "\u2010": "-", "\u2011": "-"}
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBER = re.compile(
    r"""
    (?<![\w.])                       # not inside a word or another number
    (?P<sign>[-+](?=[.]?\d))?
    (?P<body>\d*[.]?\d+(?:[.,:/-]\d+)*)
    """,
    re.VERBOSE,
)


def composed(text: str) -> str:
    """Unicode's composed form (NFC): an accent is a part of its letter. It never makes two different answers equal."""
    return unicodedata.normalize("NFC", text)


def one_form(text: str) -> str:
    """The composed form with one kind of apostrophe, quote and minus."""
    return composed(text).translate(_QUOTES)


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation and articles, as in SQuAD's script; but numbers keep sign and decimal point."""
    plain = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), one_form(text).lower())
    parts, end = [], 0
    for match in _NUMBER.finditer(plain):
        parts.append(plain[end : match.start()].translate(_PUNCTUATION))
        parts.append(("-" if match["sign"] == "-" else "") + match["body"])
        end = match.end()
    parts.append(plain[end:].translate(_PUNCTUATION))
    return [word for word in "".join(parts).split() if word not in ("a", "an", "the")]
