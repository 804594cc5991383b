r"""Which option of a multiple choice an answer means, by the rules that public harnesses share, without guessing.

In this order: what `<answer>` tags or `\boxed{}` hold; the text of an option; a letter at the beginning (`B`, `(B)`, `[B]`, `B.`,
`**B**`) or after words such as `the answer is`; the only option that the answer contains. An answer that negates an option, or
names two, is undecided.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from phase2_student.evaluation.metrics.text_forms import one_form, words_of

_TAGGED = re.compile(r"<(answer|final_answer)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"[*`$]+|(?<!\w)_+|_+(?!\w)")
_OPEN, _CLOSE = r"[(\[{<\"']*", r"[)\]}>\"']*"
_LETTER = re.compile(rf"{_OPEN}([A-Za-z]){_CLOSE}(?:[.):,](?!\w)|\s*$|\s*\n|\s+[-\u2013\u2014]\s)")
_ENCLOSED = re.compile(r"[(\[{]([A-Z])[)\]}](?!\w)")
_NAMED = re.compile(
    rf"\b(?i:answer|option|choice)(?P<between>(?i:\s+is|\s+would\s+be|\s+should\s+be)?(?i:\s+not)?(?i:\s+(?:option|choice))?)\s*[:=]?\s*"
    rf"{_OPEN}(?P<letter>[A-Z])\b{_CLOSE}(?=(?P<rest>[^\n]*))"
)
_ANOTHER = re.compile(r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*[(\[]?[A-Z]\b")
_CLAUSES = re.compile(r"[;!?\n]|[.,:](?!\d)|\bbut\b", re.IGNORECASE)
_NEGATIONS = {
    "not", "no", "never", "neither", "nor", "without", "except", "cannot", "cant", "isnt", "arent", "wasnt", "werent", "dont", "doesnt",
    "didnt", "hasnt", "havent", "wont", "wouldnt", "couldnt", "shouldnt", "aint", "unlike",
}  # fmt: skip


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """The option that an answer means; None: undecided."""
    text = _MARKS.sub("", _final(one_form(answer))).strip()
    texts = [tuple(words_of(option)) for option in options]
    words = tuple(words_of(text))
    if words and texts.count(words) == 1:
        return texts.index(words)
    if match := _LETTER.match(text) or _ENCLOSED.match(text):
        return _by_letter(match[1], options)
    named = list(_NAMED.finditer(text))
    if named:
        return _named(named, texts, options)
    return _held(text, texts)


def _final(answer: str) -> str:
    """The content of the last pair of tags or the last box; without them the whole answer."""
    tagged = _TAGGED.findall(answer)
    if tagged:
        answer = tagged[-1][1]
    start = answer.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for at in range(begin, len(answer)):
            depth += {"{": 1, "}": -1}.get(answer[at], 0)
            if depth == 0:
                answer = answer[begin + 1 : at]
                break
    return _TEXT.sub(r"\1", answer)


def _by_letter(letter: str, options: Sequence[str]) -> int | None:
    index = string.ascii_uppercase.index(letter.upper())
    return index if index < len(options) else None


def _named(found: list[re.Match[str]], texts: list[tuple[str, ...]], options: Sequence[str]) -> int | None:
    meant: set[int | None] = set()
    for match in found:
        after = tuple(words_of(match["letter"] + match["rest"]))
        if "not" in match["between"].lower().split() or _ANOTHER.match(match["rest"]):
            return None
        if match["letter"] == "A" and texts.count(after) == 1:  # `the answer is A bottle`
            meant.add(texts.index(after))
        else:
            meant.add(_by_letter(match["letter"], options))
    return meant.pop() if len(meant) == 1 else None


def _held(answer: str, texts: list[tuple[str, ...]]) -> int | None:
    """The only option that the answer contains and does not negate. An option inside a longer one does not count."""
    clauses = [words_of(clause) for clause in _CLAUSES.split(answer)]
    words = [word for clause in clauses for word in clause]
    begins = [sum(map(len, clauses[:number])) for number, clause in enumerate(clauses) for _ in clause]
    spans = [
        (at, at + len(option), index)
        for index, option in enumerate(texts)
        for at in range(len(words) - len(option) + 1)
        if option and tuple(words[at : at + len(option)]) == option
    ]
    spans = [
        span
        for span in spans
        if not any(o[0] <= span[0] and span[1] <= o[1] and o[1] - o[0] > span[1] - span[0] for o in spans)
    ]
    if any(_NEGATIONS.intersection(words[begins[begin] : begin]) for begin, _, _ in spans):
        return None
    held = {index for _, _, index in spans}
    return held.pop() if len(held) == 1 else None
