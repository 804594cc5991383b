"""How right an answer is: exact match, token F1, ANLS, and the chosen option of a multiple choice.

Exact match compares the texts as they are, spaces at the ends aside. Token F1 is SQuAD's (Rajpurkar et al. 2016, official
evaluation script): lower case, without punctuation and articles. ANLS is Biten et al.'s (2019): 1 minus the edit distance
over the longer length, 0 from half of it on.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

ANLS_THRESHOLD = 0.5

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LETTERED = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE = re.compile(r"\(([A-Z])\)\s*(.*?)(?=[\s,;]*\([A-Z]\)|\s*$)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])(?:[.):,]|\s*$)")
_NAMED = re.compile(r"(?i:the )?(?i:correct |right |best )?(?i:answer|option|choice)(?i: is)?:? *\(?([A-Z])\b")


def exact_match(answer: str, truth: str) -> bool:
    """Whether the texts are the same, spaces at the ends aside."""
    return answer.strip() == truth.strip()


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the words of both, 0 to 1."""
    own, wanted = _words(answer), _words(truth)
    if not own or not wanted:
        return float(own == wanted)
    common = sum((Counter(own) & Counter(wanted)).values())
    return 2 * common / (len(own) + len(wanted))


def anls(answer: str, truth: str) -> float:
    """Normalised Levenshtein similarity, lower case; 0 where the distance is half of the longer text or more."""
    similarity = float(Levenshtein.normalized_similarity(_plain(answer), _plain(truth)))
    return similarity if 1 - similarity < ANLS_THRESHOLD else 0.0


def choice_options(question: str, options: Sequence[str]) -> tuple[str, ...]:
    """The texts of a multiple choice, A first; empty where the question is none.

    Args:
        question: its lines `A. text`, `B) text` or its `(A) text (B) text` are options where `options` is empty.
        options: of the sample.
    """
    if options:
        return tuple(options)
    for pattern in (_LETTERED, _INLINE):
        found = pattern.findall(question)
        letters = "".join(letter for letter, _ in found)
        if len(found) >= 2 and letters == string.ascii_uppercase[: len(found)]:
            return tuple(text for _, text in found)
    return ()


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """Which option an answer means: by its letter, by its text, or as the only option that it holds; None: undecided."""
    texts = [" ".join(_words(option)) for option in options]
    words = " ".join(_words(answer))
    if words and texts.count(words) == 1:
        return texts.index(words)
    match = _LETTER.match(answer.strip()) or _NAMED.match(answer.strip())
    if match:
        index = string.ascii_uppercase.index(match[1].upper())
        return index if index < len(options) else None
    held = [index for index, text in enumerate(texts) if text and f" {text} " in f" {words} "]
    return held[0] if len(held) == 1 else None


def choice_match(answer: str, truth: str, options: Sequence[str]) -> bool | None:
    """Whether both mean the same option; None where the question is no multiple choice or the truth names no option."""
    wanted = chosen(truth, options) if options else None
    return None if wanted is None else chosen(answer, options) == wanted


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
