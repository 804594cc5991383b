"""Dense descriptions of a clip: everything in sight, worded differently every time.

A question of `questions` has one exact answer; a description can be worded in many ways, so a model trained on them spreads
its probability over many tokens. The probability of each wording is known: `wordings` lists them all.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from firstsight.demo.synth.questions import COLUMN_PHRASES, NUMBERS, a, doing, happened, plural, position
from firstsight.demo.synth.scenes import PLACES, Clip, Scene

_REQUESTS = (
    "Tell me everything.",
    "Describe everything in detail.",
    "List everything that you see, and where it is.",
    "What is in this picture? Be thorough.",
)
_THERE_IS = ("there is", "I see", "you have")
_JOINTS = (", then", ", and", ", next", ",")
# how likely a description has each of these
_WITH_POSITIONS, _HANDS_FIRST, _PLACE_FIRST, _COUNTED = 0.6, 0.25, 0.7, 0.5


@dataclass(frozen=True, kw_only=True)
class _Wording:
    """The choices of a description."""

    there_is: str
    joint: str
    with_positions: bool
    hands_first: bool
    """Describes the hands before the things on the surface."""
    place_first: bool
    """Describes the place first, else after surface and hands."""
    counted: bool
    """Ends with the number of things; a clip with events ends with the events."""


def caption(rng: np.random.Generator, clip: Clip) -> tuple[str, str]:
    """A request and a description of the clip: its last frame in detail, then what happened between the frames."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    # in this order: the shipped tokenizer and models were trained on what these draws gave
    there_is, joint = pick(_THERE_IS), pick(_JOINTS)
    with_positions, hands_first, place_first = (
        bool(rng.random() < share) for share in (_WITH_POSITIONS, _HANDS_FIRST, _PLACE_FIRST)
    )
    wording = _Wording(
        there_is=there_is,
        joint=joint,
        with_positions=with_positions,
        hands_first=hands_first,
        place_first=place_first,
        counted=not clip.events and bool(rng.random() < _COUNTED),
    )
    return pick(_REQUESTS), _worded(clip, wording)


def wordings(clip: Clip) -> dict[str, float]:
    """Every description that `caption` may give of the clip, and how likely it is; the request makes no difference."""
    found: dict[str, float] = {}
    choices: list[list[tuple[Any, float]]] = [
        [(option, 1 / len(_THERE_IS)) for option in _THERE_IS],
        [(option, 1 / len(_JOINTS)) for option in _JOINTS],
        *([(True, share), (False, 1 - share)] for share in (_WITH_POSITIONS, _HANDS_FIRST, _PLACE_FIRST)),
        [(False, 1.0)] if clip.events else [(True, _COUNTED), (False, 1 - _COUNTED)],
    ]
    names = ("there_is", "joint", "with_positions", "hands_first", "place_first", "counted")
    for chosen in itertools.product(*choices):
        options, shares = zip(*chosen, strict=True)
        text = _worded(clip, _Wording(**dict(zip(names, options, strict=True))))
        found[text] = found.get(text, 0.0) + float(np.prod(shares))
    return found


def _worded(clip: Clip, wording: _Wording) -> str:
    scene = clip.frames[-1]
    parts = [_surface(scene, wording), _hands(scene)]
    if wording.hands_first:
        parts.reverse()
    parts.insert(0 if wording.place_first else 2, _place(scene))
    if clip.events:
        parts.append(" ".join(happened(scene, event) for event in clip.events))
    elif wording.counted:
        count = len(scene.placed)
        parts.append(
            f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {plural('thing', count)} on the {scene.surface}."
        )
    return " ".join(parts)


def _surface(scene: Scene, wording: _Wording) -> str:
    if not scene.placed:
        return f"The {scene.surface} is empty."
    things = [a(p.item) + (f" {position(p.row, p.column)}" if wording.with_positions else "") for p in scene.placed]
    return f"On the {scene.surface} {wording.there_is} {f'{wording.joint} '.join(things)}."


def _hands(scene: Scene) -> str:
    return f"Your left hand is {doing(scene, scene.left)}, and your right hand is {doing(scene, scene.right)}."


def _place(scene: Scene) -> str:
    where = COLUMN_PHRASES[scene.landmark_column]
    backdrop = PLACES[scene.environment].backdrop
    return f"You are in the {scene.environment}, and there is a {scene.landmark} on the {backdrop} {where}."
