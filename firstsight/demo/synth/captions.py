"""Dense descriptions of a clip, for pre-training: everything in sight, worded differently every time.

A question of `questions` has one exact answer; a description can be worded in many ways, so that a model trained on them spreads
its probability over many tokens.
"""

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


def caption(rng: np.random.Generator, clip: Clip) -> tuple[str, str]:
    """A request and a description of the clip: its last frame in detail, then what happened between the frames."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    scene = clip.frames[-1]
    parts = [_surface(scene, pick(_THERE_IS), pick(_JOINTS), with_places=rng.random() < 0.6), _hands(scene)]
    if rng.random() < 0.25:
        parts.reverse()
    parts.insert(0 if rng.random() < 0.7 else 2, _place(scene))
    if clip.events:
        parts.append(" ".join(happened(scene, event) for event in clip.events))
    elif rng.random() < 0.5:
        count = len(scene.placed)
        parts.append(
            f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {plural('thing', count)} on the {scene.surface}."
        )
    return pick(_REQUESTS), " ".join(parts)


def _surface(scene: Scene, there_is: str, joint: str, *, with_places: bool) -> str:
    if not scene.placed:
        return f"The {scene.surface} is empty."
    things = [a(p.item) + (f" {position(p.row, p.column)}" if with_places else "") for p in scene.placed]
    return f"On the {scene.surface} {there_is} {f'{joint} '.join(things)}."


def _hands(scene: Scene) -> str:
    return f"Your left hand is {doing(scene, scene.left)}, and your right hand is {doing(scene, scene.right)}."


def _place(scene: Scene) -> str:
    where = COLUMN_PHRASES[scene.landmark_column]
    backdrop = PLACES[scene.environment].backdrop
    return f"You are in the {scene.environment}, and there is a {scene.landmark} on the {backdrop} {where}."
