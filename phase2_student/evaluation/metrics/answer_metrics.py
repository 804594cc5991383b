"""How right an answer is: exact match, token F1, ANLS, the chosen option of a multiple choice, and VQA accuracy.

Exact match compares the texts, except for spaces at the ends and the form of Unicode. Token F1 is SQuAD's (Rajpurkar et al.
2016, official evaluation script): lower case, without punctuation and articles, but numbers keep sign and decimal point.
ANLS is Biten et al.'s (2019): 1 minus the edit distance over the longer length, or 0 if the distance is half of it or more.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from phase2_student.evaluation.metrics.choices import chosen
from phase2_student.evaluation.metrics.text_forms import composed, words_of

ANLS_THRESHOLD = 0.5
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
"""The number words of VQA's official script."""

_LETTERED = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE = re.compile(r"\(([A-Z])\)\s*(.*?)(?=[\s,;]*\([A-Z]\)|\s*$)", re.DOTALL)


def exact_match(answer: str, truth: str) -> bool:
    """Whether the texts are the same, except for spaces at the ends and the form of Unicode."""
    return composed(answer).strip() == composed(truth).strip()


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the words of both texts, 0 to 1."""
    own, wanted = words_of(answer), words_of(truth)
    if not own or not wanted:
        return float(own == wanted)
    common = sum((Counter(own) & Counter(wanted)).values())
    return 2 * common / (len(own) + len(wanted))


def anls(answer: str, truth: str) -> float:
    """Normalised Levenshtein similarity in lower case; 0 if the distance is half of the longer text or more."""
    similarity = float(Levenshtein.normalized_similarity(_plain(answer), _plain(truth)))
    return similarity if 1 - similarity < ANLS_THRESHOLD else 0.0


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015): 1 if at least three other people gave this answer, or all of them if there are fewer.

    The mean over leaving out each truth in turn, as the official script does for its ten.

    Args:
        answer: the model's answer.
        truths: the answers of people, at least one.
    """
    said = _vqa_form(answer)
    agrees = [_vqa_form(truth) == said for truth in truths]
    if len(agrees) == 1:
        return float(agrees[0])
    enough = min(3, len(agrees) - 1)
    return math.fsum(min(1.0, (sum(agrees) - agree) / enough) for agree in agrees) / len(agrees)


def choice_options(question: str, options: Sequence[str]) -> tuple[str, ...]:
    """The options of a multiple choice, A first; empty if the question is none.

    Args:
        question: if `options` is empty, its lines `A. text`, `B) text` or its `(A) text (B) text` are the options.
        options: the sample's options.
    """
    if options:
        return tuple(options)
    for pattern in (_LETTERED, _INLINE):
        found = pattern.findall(question)
        letters = "".join(letter for letter, _ in found)
        if len(found) >= 2 and letters == string.ascii_uppercase[: len(found)]:
            return tuple(text for _, text in found)
    return ()


def choice_match(answer: str, truth: str, options: Sequence[str]) -> bool | None:
    """Whether both mean the same option; None if the question is no multiple choice or the truth names no option."""
    wanted = chosen(truth, options) if options else None
    return None if wanted is None else chosen(answer, options) == wanted


def choice_undecided(answer: str, truth: str, options: Sequence[str]) -> bool | None:
    """Whether an answer to a multiple choice means no option, or more than one; None if `choice_match` is None."""
    return None if choice_match(answer, truth, options) is None else chosen(answer, options) is None


def _vqa_form(text: str) -> list[str]:
    return [_NUMBERS.get(word, word) for word in words_of(text)]


def _plain(text: str) -> str:
    return " ".join(composed(text).lower().split())
