"""How right an answer is: exact match, token F1, ANLS, the chosen option of a multiple choice, and VQA accuracy.

Exact match compares the texts as they are, spaces at the ends and the form of Unicode aside. Token F1 is SQuAD's (Rajpurkar
et al. 2016, official evaluation script): lower case, without punctuation and articles, but numbers keep sign and decimal
point. ANLS is Biten et al.'s (2019): 1 minus the edit distance over the longer length, 0 from half of it on.
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
"""As VQA's official script has them."""

_LETTERED = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE = re.compile(r"\(([A-Z])\)\s*(.*?)(?=[\s,;]*\([A-Z]\)|\s*$)", re.DOTALL)


def exact_match(answer: str, truth: str) -> bool:
    """Whether the texts are the same, spaces at the ends and the form of Unicode aside."""
    return composed(answer).strip() == composed(truth).strip()


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the words of both, 0 to 1."""
    own, wanted = words_of(answer), words_of(truth)
    if not own or not wanted:
        return float(own == wanted)
    common = sum((Counter(own) & Counter(wanted)).values())
    return 2 * common / (len(own) + len(wanted))


def anls(answer: str, truth: str) -> float:
    """Normalised Levenshtein similarity, lower case; 0 where the distance is half of the longer text or more."""
    similarity = float(Levenshtein.normalized_similarity(_plain(answer), _plain(truth)))
    return similarity if 1 - similarity < ANLS_THRESHOLD else 0.0


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """The share of people who would agree, in the form of VQA (Antol et al. 2015): three of the others agree, or all where fewer are.

    Averaged over leaving each truth out in turn, as the official script does for its ten.

    Args:
        answer: the model's answer.
        truths: what people answered, one at least.
    """
    said = _vqa_form(answer)
    agrees = [_vqa_form(truth) == said for truth in truths]
    if len(agrees) == 1:
        return float(agrees[0])
    enough = min(3, len(agrees) - 1)
    return math.fsum(min(1.0, (sum(agrees) - agree) / enough) for agree in agrees) / len(agrees)


def choice_options(question: str, options: Sequence[str]) -> tuple[str, ...]:
    """The texts of a multiple choice, A first; empty where the question is none.

    Args:
        question: its lines `A. text`, `B) text` or its `(A) text (B) text` are options where `options` is empty.
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
    """Whether both mean the same option; None where the question is no multiple choice or the truth names no option."""
    wanted = chosen(truth, options) if options else None
    return None if wanted is None else chosen(answer, options) == wanted


def choice_undecided(answer: str, truth: str, options: Sequence[str]) -> bool | None:
    """Whether an answer to a multiple choice means no option, or more than one; None where `choice_match` is."""
    return None if choice_match(answer, truth, options) is None else chosen(answer, options) is None


def _vqa_form(text: str) -> list[str]:
    return [_NUMBERS.get(word, word) for word in words_of(text)]


def _plain(text: str) -> str:
    return " ".join(composed(text).lower().split())
