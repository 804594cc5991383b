"""One question about a clip and its one exact answer, in seven categories.

Every answer is a full sentence that follows from the pixels alone. A category has several kinds of question, each with
several phrasings; the answer does not depend on the phrasing.
"""

from collections.abc import Callable

import numpy as np

from firstsight.demo.synth.scenes import (
    BACK_ROW,
    COLOURS,
    KINDS,
    PLACES,
    Clip,
    Event,
    Hand,
    Item,
    Scene,
    Side,
)

COLUMN_PHRASES = ("on the far left", "on the left", "on the right", "on the far right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
USES = {
    "mug": "filling",
    "bottle": "pouring from",
    "book": "reading",
    "apple": "eating",
    "spoon": "stirring with",
    "hammer": "swinging",
    "key": "turning",
    "bowl": "tipping",
}
SIDES: tuple[Side, Side] = ("left", "right")

# The phrasings of a question and its answer.
Candidate = tuple[tuple[str, ...], str]


def ask(rng: np.random.Generator, clip: Clip, category: str) -> tuple[str, str]:
    """A question of `category` about `clip` and its answer.

    Raises ValueError when the clip does not suit the category (temporal needs frames, the others need one).
    """
    if (category == "temporal") != (len(clip.frames) > 1):
        raise ValueError(f"a clip of {len(clip.frames)} frames does not suit a question of category {category}")
    sets = [candidates for build in _BUILDERS[category] if (candidates := build(clip))]
    if not sets:
        raise ValueError(f"no question of category {category} suits this clip")
    candidates = sets[int(rng.integers(len(sets)))]
    phrasings, answer = candidates[int(rng.integers(len(candidates)))]
    return phrasings[int(rng.integers(len(phrasings)))], answer


def a(item: Item) -> str:
    """The item with the indefinite article: "a red apple"."""
    return f"a {item.colour} {item.kind}"


def the(item: Item) -> str:
    """The item with the definite article: "the red apple"."""
    return f"the {item.colour} {item.kind}"


def listed(phrases: list[str]) -> str:
    """An English list: "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def position(row: int, column: int) -> str:
    """Where a cell of the surface is: "at the back on the far left"."""
    return f"{'at the back' if row == BACK_ROW else 'at the front'} {COLUMN_PHRASES[column]}"


def doing(scene: Scene, hand: Hand) -> str:
    """What a hand is doing: "pointing at the red mug"."""
    if hand.action == "point":
        pointed = scene.pointed_at(hand.side)
        assert pointed is not None
        return f"pointing at {the(pointed)}"
    if hand.item is None:
        return f"resting on the {scene.surface}"
    return f"{'holding' if hand.action == 'hold' else USES[hand.item.kind]} {the(hand.item)}"


def _unique_colours(scene: Scene) -> list[Item]:
    items = scene.items
    return [item for item in items if sum(other.colour == item.colour for other in items) == 1]


def _unique_kinds(scene: Scene) -> list[Item]:
    items = scene.items
    return [item for item in items if sum(other.kind == item.kind for other in items) == 1]


def _whereabouts(scene: Scene, item: Item) -> str:
    """Where an item is, roughly: "on the desk" or "in your left hand"."""
    holder = next((hand.side for hand in (scene.left, scene.right) if hand.item == item), None)
    return f"on the {scene.surface}" if holder is None else f"in your {holder} hand"


def _what_has_the_colour(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    return [
        (
            (
                f"What is the {item.colour} thing?",
                f"Which object is {item.colour}?",
                f"I see something {item.colour}. What is it?",
            ),
            f"The {item.colour} thing {_whereabouts(scene, item)} is {'an' if item.kind == 'apple' else 'a'} {item.kind}.",
        )
        for item in _unique_colours(scene)
    ]


def _what_is_there(clip: Clip) -> list[Candidate]:
    return [
        (
            (f"What is {position(p.row, p.column)}?", f"Which object do you see {position(p.row, p.column)}?"),
            f"There is {a(p.item)} {position(p.row, p.column)}.",
        )
        for p in clip.frames[0].placed
    ]


def _what_is_in_the_hand(clip: Clip) -> list[Candidate]:
    return [
        (
            (f"What is in my {hand.side} hand?", f"Which object do I have in my {hand.side} hand?"),
            f"You have {a(hand.item)} in your {hand.side} hand.",
        )
        for hand in (clip.frames[0].left, clip.frames[0].right)
        if hand.item is not None
    ]


def _where_is_it(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    return [
        (
            (f"Where is {the(p.item)}?", f"Where can I find {the(p.item)}?", f"Tell me where {the(p.item)} is."),
            f"{the(p.item).capitalize()} is {position(p.row, p.column)} of the {scene.surface}.",
        )
        for p in scene.placed
    ]


def _what_is_beside_it(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    found: list[Candidate] = []
    for p in scene.placed:
        for step, side in ((-1, "left"), (1, "right")):
            neighbour = scene.at(p.row, p.column + step)
            if neighbour is not None:
                relation = f"directly to the {side} of {the(p.item)}"
                phrasings = (f"What is {relation}?", f"Which object is {relation}?")
                found.append((phrasings, f"{the(neighbour).capitalize()} is {relation}."))
    return found


def _what_is_before_it(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    found: list[Candidate] = []
    for p in scene.placed:
        relation = f"directly {'in front of' if p.row == BACK_ROW else 'behind'} {the(p.item)}"
        neighbour = scene.at(p.row + (1 if p.row == BACK_ROW else -1), p.column)
        if neighbour is not None:
            phrasings = (f"What is {relation}?", f"Which object is {relation}?")
            found.append((phrasings, f"{the(neighbour).capitalize()} is {relation}."))
    return found


def _what_does_the_hand_do(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    return [
        (
            (f"What is my {side} hand doing?", f"What am I doing with my {side} hand?"),
            f"Your {side} hand is {doing(scene, scene.hand(side))}.",
        )
        for side in SIDES
    ]


def _what_do_both_hands_do(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    answer = f"Your left hand is {doing(scene, scene.left)}, and your right hand is {doing(scene, scene.right)}."
    return [(("What are my hands doing?", "What am I doing?", "Tell me what both hands are doing."), answer)]


_EVENT_QUESTIONS = {
    "pick_up": ("What did I pick up?", "What did I just take?"),
    "put_down": ("What did I put down, and where?", "What did I just put down?"),
    "move": ("Which object was moved, and where to?", "What did I move?"),
}
_ANY_EVENT = ("What did I just do?", "What changed between the two pictures?", "What happened?")


def happened(scene: Scene, event: Event) -> str:
    """What the wearer did, as a sentence; `scene` is any frame of the clip."""
    if event.row is None or event.column is None:
        return f"You picked up {the(event.item)} with your {event.side} hand."
    verb = "put" if event.kind == "put_down" else "moved"
    there = f"{'back' if event.row == BACK_ROW else 'front'} of the {scene.surface} {COLUMN_PHRASES[event.column]}"
    return f"You {verb} {the(event.item)} {'down at' if verb == 'put' else 'to'} the {there}."


def _what_happened(clip: Clip) -> list[Candidate]:
    if len(clip.events) != 1:
        return []
    event = clip.events[0]
    return [(_EVENT_QUESTIONS[event.kind] + _ANY_EVENT, happened(clip.frames[0], event))]


def _in_which_order(clip: Clip) -> list[Candidate]:
    if len(clip.events) != 2:
        return []
    first, second = clip.events
    phrasings = (
        "In which order did I pick things up?",
        "What did I pick up first, and what second?",
        "What did I take?",
    )
    return [(phrasings, f"First you picked up {the(first.item)}, and then you picked up {the(second.item)}.")]


def plural(noun: str, count: int) -> str:
    """The noun as it follows the number `count`."""
    return noun if count == 1 else f"{noun}s"


def _how_many(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    items = [p.item for p in scene.placed]
    if clip.focus == "kind":
        subjects = [(clip.subject, sum(item.kind == clip.subject for item in items))]
    elif clip.focus == "colour":
        subjects = [(f"{clip.subject} thing", sum(item.colour == clip.subject for item in items))]
    elif clip.focus == "all":
        subjects = [("thing", len(items))]
    else:
        kinds = [(kind, sum(item.kind == kind for item in items)) for kind in KINDS]
        colours = [(f"{colour} thing", sum(item.colour == colour for item in items)) for colour in COLOURS]
        subjects = [("thing", len(items)), *((noun, count) for noun, count in [*kinds, *colours] if count > 1)]
    return [
        (
            (
                f"How many {plural(noun, 2)} are on the {scene.surface}?",
                f"How many {plural(noun, 2)} do you see on the {scene.surface}?",
                f"Count the {plural(noun, 2)} on the {scene.surface}.",
            ),
            f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {plural(noun, count)} on the {scene.surface}.",
        )
        for noun, count in subjects
    ]


def _which_colour_is_it(clip: Clip) -> list[Candidate]:
    scene = clip.frames[0]
    return [
        (
            (f"What colour is the {item.kind}?", f"Which colour does the {item.kind} have?"),
            f"The {item.kind} {_whereabouts(scene, item)} is {item.colour}.",
        )
        for item in _unique_kinds(scene)
    ]


def _which_colour_is_there(clip: Clip) -> list[Candidate]:
    return [
        (
            (f"What colour is the thing {where}?", f"Which colour does the thing {where} have?"),
            f"The {p.item.kind} {where} is {p.item.colour}.",
        )
        for p in clip.frames[0].placed
        for where in (position(p.row, p.column),)
    ]


def _where_am_i(clip: Clip) -> list[Candidate]:
    if clip.focus == "describe":
        return []
    scene = clip.frames[0]
    answer = f"You are in the {scene.environment}, standing at the {scene.surface}."
    return [(("Where am I?", "Which room or place is this?", "In what place was this picture taken?"), answer)]


def _what_is_behind(clip: Clip) -> list[Candidate]:
    if clip.focus == "describe":
        return []
    scene = clip.frames[0]
    backdrop = PLACES[scene.environment].backdrop
    where = COLUMN_PHRASES[scene.landmark_column]
    answer = f"You are in the {scene.environment}, and there is a {scene.landmark} on the {backdrop} {where}."
    return [
        (
            (f"What is on the {backdrop} behind the {scene.surface}?", "Where am I, and what is behind the things?"),
            answer,
        )
    ]


def _describe(clip: Clip) -> list[Candidate]:
    if clip.focus != "describe":
        return []
    scene = clip.frames[0]
    things = listed([a(p.item) for p in scene.placed])
    answer = f"You are in the {scene.environment} and see {things} on the {scene.surface}."
    return [(("Describe what you see.", "Describe the picture.", "What do you see in front of me?"), answer)]


_BUILDERS: dict[str, tuple[Callable[[Clip], list[Candidate]], ...]] = {
    "object_recognition": (_what_has_the_colour, _what_is_there, _what_is_in_the_hand),
    "spatial_reasoning": (_where_is_it, _what_is_beside_it, _what_is_before_it),
    "action_understanding": (_what_does_the_hand_do, _what_do_both_hands_do),
    "temporal": (_what_happened, _in_which_order),
    "counting": (_how_many,),
    "attributes": (_which_colour_is_it, _which_colour_is_there),
    "environment": (_where_am_i, _what_is_behind, _describe),
}
