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
    choice_undecided,
    chosen,
    exact_match,
    token_f1,
    vqa_accuracy,
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


# ---- Unicode, numbers, forms of a choice ----

COMPOSED, DECOMPOSED = "caf\u00e9 \u304c", "cafe\u0301 \u304b\u3099"


def test_both_forms_of_unicode_are_one_text():
    assert COMPOSED != DECOMPOSED
    assert exact_match(DECOMPOSED, COMPOSED)
    assert exact_match(COMPOSED, DECOMPOSED)
    assert token_f1(DECOMPOSED, COMPOSED) == 1.0
    assert anls(DECOMPOSED, COMPOSED) == 1.0
    assert chosen(DECOMPOSED, ("tea", COMPOSED)) == 1
    assert not exact_match("cafe", COMPOSED)
    assert not exact_match("m2", "m\u00b2")  # compatibility forms are other answers
    assert not exact_match("\u2460", "1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-5", "5"),
        ("0.5", "05"),
        ("10:30", "1030"),
        ("1/2", "12"),
        ("3-4", "34"),
        ("1,5", "15"),
        ("-0.5 m", "0.5 m"),
        ("2.50", "250"),
        ("at -3 degrees", "at 3 degrees"),
    ],
)
def test_different_numbers_are_different_words(one, other):
    assert token_f1(one, other) < 1
    assert chosen(one, (other, one)) == 1
    assert chosen(other, (other, one)) == 0
    assert chosen(f"It is {one}.", (other, one)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000"),
        ("1,234,567.5 m", "1234567.5 m"),
        ("$5.", "5"),
        ("+5", "5"),
        ("\u22125", "-5"),
        ("room-5", "room5"),
        ("(-5)", "-5"),
        ("5, 6.", "5 6"),
        ("It\u2019s red", "It's red"),
    ],
)
def test_equal_numbers_are_equal_words(one, other):
    assert token_f1(one, other) == 1.0


LENGTHS = ("1.5 m", "15 m", "150 m")


@pytest.mark.parametrize(
    ("answer", "index"), [("1.5 m", 0), ("15 m", 1), ("150 m.", 2), ("It is 1.5 m long", 0), ("5 m", None)]
)
def test_lengths_are_told_apart(answer, index):
    assert chosen(answer, LENGTHS) == index
    assert choice_match(answer, "1.5 m", LENGTHS) is (index == 0)


@pytest.mark.parametrize(
    "answer",
    [
        "**B**",
        "[B]",
        "\\boxed{B}",
        "<answer>B</answer>",
        "(B)",
        "(B) a bottle",
        "[B] a bottle",
        "**B.** a bottle",
        "B - a bottle",
        "B\n\nIt is made of glass, unlike a mug.",
        "`B`",
        "$B$",
        "$\\boxed{\\text{B}}$",
        "So the answer is \\boxed{\\mathrm{B}}.",
        "The mug is red. <answer>(B) a bottle</answer>",
        "<think>A mug? No.</think> <answer> b </answer>",
        "The answer is **B**.",
        "**Answer:** B",
        "Answer: (B)",
        "The correct option is B, not A.",
        "It stands on the table. The answer is B",
        "The answer would be option B",
        "Answer: A bottle",
        "\\boxed{a bottle}",
        "I see a bottle; nothing else.",
        '"B"',
        "Option B",
    ],
)
def test_the_forms_that_harnesses_take(answer):
    assert chosen(answer, ("a mug", "a bottle", "a key")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "not a bottle",
        "It is not a bottle.",
        "It isn't a bottle",
        "It isn\u2019t a bottle",
        "There is no bottle here",
        "never the bottle",
        "not a bottle, a mug",
        "neither a bottle nor a key",
        "The answer is not B",
        "The answer isn't B",
        "Not B",
        "The answer is B or C",
        "The answer is A. No, the answer is B.",
        "<answer></answer>",
        "\\boxed{}",
        "\\boxed{B",
        "e.g. something",
        "D",
        "[Z]",
        "\\boxed{D}",
    ],
)
def test_what_is_negated_or_ambiguous_is_undecided(answer):
    options = ("a mug", "a bottle", "a key")
    assert chosen(answer, options) is None
    assert choice_match(answer, "a bottle", options) is False
    assert choice_undecided(answer, "a bottle", options) is True


def test_options_that_negate_are_options():
    options = ("visible", "not visible")
    assert chosen("not visible", options) == 1
    assert chosen("It is not visible.", options) == 1
    assert chosen("It is visible.", options) == 0
    assert chosen("No, it is red", ("yes", "no")) == 1
    assert chosen("no", ("yes", "no")) == 1
    assert chosen("No. It is red.", ("red", "blue")) == 0
    assert chosen("not red but blue", ("red", "blue")) is None
    assert chosen("dark red", ("red", "dark red")) == 1
    assert chosen("It is dark red", ("red", "dark red")) == 1


def test_undecided_is_counted_only_for_multiple_choices():
    assert choice_undecided("B", "A", ("a mug", "a bottle")) is False
    assert choice_undecided("both", "A", ("a mug", "a bottle")) is True
    assert choice_undecided("both", "a mug", ()) is None


def official_vqa(answer, truths):
    """The official VQA script's accuracy over plain lower-case words."""
    accuracies = []
    for number in range(len(truths)):
        others = truths[:number] + truths[number + 1 :]
        accuracies.append(min(1, sum(other == answer for other in others) / 3))
    return sum(accuracies) / len(accuracies)


def test_vqa_accuracy_is_the_official_scripts():
    draw = random.Random(0)
    for _ in range(300):
        truths = draw.choices(["red", "blue", "dark red", "yes", "12"], k=10)
        answer = draw.choice(["red", "blue", "dark red", "yes", "12", "no"])
        assert vqa_accuracy(answer, truths) == pytest.approx(official_vqa(answer, truths))


@pytest.mark.parametrize(
    ("answer", "truths", "right"),
    [
        ("Red.", ["red"] * 10, 1),
        ("the red", ["red"] * 10, 1),
        ("2", ["two"] * 10, 1),
        ("none", ["0"] * 10, 1),
        ("1.5", ["15"] * 10, 0),
        ("-5", ["5"] * 10, 0),
        ("red", ["blue"] * 10, 0),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("red", ["red"] + ["blue"] * 9, 0.3),
        ("cafe\u0301", ["caf\u00e9"] * 10, 1),
        ("red", ["red"], 1),
        ("red", ["blue"], 0),
        ("red", ["red", "red"], 1),
        ("red", ["red", "blue"], 0.5),
        ("red", ["red", "red", "red"], 1),
        ("", ["red"] * 10, 0),
    ],
)
def test_vqa_accuracy_by_hand(answer, truths, right):
    assert vqa_accuracy(answer, truths) == pytest.approx(right)
