"""Exact match, token F1, ANLS and multiple choice, against values worked out by hand and a reference of a few lines."""

import random
import re
import string
from functools import cache

import pytest

from phase2_student.evaluation.metrics.answer_metrics import (
    anls,
    choice_match,
    choice_options,
    chosen,
    exact_match,
    token_f1,
)


def squad_f1(answer, truth):
    """The official SQuAD script's f1_score, said again."""

    def tokens(text):
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    own, wanted = tokens(answer), tokens(truth)
    if not own or not wanted:
        return float(own == wanted)
    rest = list(wanted)
    common = 0
    for token in own:
        if token in rest:
            rest.remove(token)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(own), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def edit_distance(first, second):
    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    return distance(len(first), len(second))


def anls_reference(answer, truth):
    answer, truth = " ".join(answer.lower().split()), " ".join(truth.lower().split())
    longest = max(len(answer), len(truth))
    share = edit_distance(answer, truth) / longest if longest else 0.0
    return 1 - share if share < 0.5 else 0.0


@pytest.mark.parametrize(
    ("answer", "truth", "f1", "similarity"),
    [
        ("A red mug.", "a red mug", 1.0, 0.9),
        ("the red mug", "a red mug", 1.0, 1 - 3 / 11),
        ("red", "a red mug", 2 / 3, 0.0),
        ("", "a red mug", 0.0, 0.0),
        ("blue bottle", "red mug", 0.0, 0.0),
        ("two two", "two", 2 / 3, 0.0),
    ],
)
def test_known_values(answer, truth, f1, similarity):
    assert token_f1(answer, truth) == pytest.approx(f1)
    assert anls(answer, truth) == pytest.approx(similarity)


def test_as_the_references():
    draw = random.Random(0)
    words = ["a", "The", "red", "mug,", "is", "on", "the", "left.", "bottle", ""]
    for _ in range(300):
        answer, truth = (" ".join(draw.choices(words, k=draw.randrange(6))) for _ in range(2))
        assert token_f1(answer, truth) == pytest.approx(squad_f1(answer, truth))
        assert anls(answer, truth) == pytest.approx(anls_reference(answer, truth))


def test_exact_match_minds_everything_but_the_ends():
    assert exact_match(" A mug.\n", "A mug.")
    assert not exact_match("a mug.", "A mug.")


@pytest.mark.parametrize(
    ("question", "options", "found"),
    [
        ("What is it?\nA. a mug\nB. a bottle\nC. a key", (), ("a mug", "a bottle", "a key")),
        ("What is it? (A) a mug (B) a bottle", (), ("a mug", "a bottle")),
        ("What is it? (A) a mug, (B) a bottle", (), ("a mug", "a bottle")),
        ("What is it?\n(A) a mug\nB) a bottle", (), ("a mug", "a bottle")),
        ("What is it?", ("mug", "bottle"), ("mug", "bottle")),
        ("What does plan B. say?\nB. nothing", (), ()),
        ("Is it a mug? A. only", (), ()),
    ],
)
def test_options_of_a_question(question, options, found):
    assert choice_options(question, options) == found


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B) a bottle", 1),
        ("The answer is B", 1),
        ("Answer: C, because it is blue", 2),
        ("a bottle", 1),
        ("It is a bottle on a table.", 1),
        ("A mug.", 0),
        ("A mug or a bottle", None),
        ("D", None),
        ("something else", None),
        ("", None),
    ],
)
def test_which_option_an_answer_means(answer, index):
    assert chosen(answer, ("a mug", "a bottle", "a key")) == index


def test_choice_match():
    options = ("a mug", "a bottle")
    assert choice_match("It is a bottle", "B", options) is True
    assert choice_match("A", "a bottle", options) is False
    assert choice_match("no idea", "B", options) is False
    assert choice_match("B", "neither", options) is None
    assert choice_match("a bottle", "a bottle", ()) is None
