"""First-person scenes at random: a place, objects on a surface, two hands, and what happens over time.

An image is a 4 x 4 grid of cells, seen from the wearer's eyes. Row 0 is the backdrop with one landmark, rows 1 (back)
and 2 (front) are the surface with at most one object per cell, row 3 holds the hands: the left one in column 0 or 1, the
right one in column 2 or 3. No two objects of a scene share both kind and colour, so "the red mug" is always one thing.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

GRID = 4
BACK_ROW, FRONT_ROW, HAND_ROW = 1, 2, 3

CATEGORIES = (
    "object_recognition",
    "spatial_reasoning",
    "action_understanding",
    "temporal",
    "counting",
    "attributes",
    "environment",
)
KINDS = ("mug", "bottle", "book", "apple", "spoon", "hammer", "key", "bowl")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
LANDMARKS = ("clock", "lamp", "plant", "picture")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The names that belong to an environment."""

    surface: str
    backdrop: str


PLACES = {
    "kitchen": Place(surface="counter", backdrop="wall"),
    "office": Place(surface="desk", backdrop="wall"),
    "workshop": Place(surface="workbench", backdrop="wall"),
    "garden": Place(surface="table", backdrop="fence"),
    "bathroom": Place(surface="shelf", backdrop="wall"),
}
ENVIRONMENTS = tuple(PLACES)

T = TypeVar("T")
Action = Literal["rest", "point", "hold", "use"]
Side = Literal["left", "right"]
EventKind = Literal["pick_up", "put_down", "move"]
Focus = Literal["kind", "colour", "all", "describe"]

HAND_COLUMNS: dict[Side, tuple[int, int]] = {"left": (0, 1), "right": (2, 3)}
SKINS = 4
SLEEVES = 4
# Largest shift of a drawing inside its 56-pixel cell, in pixels; the drawings leave that margin free.
JITTER = 4
# Backdrops are this many pixels wider than the image, and shift by up to as many.
MAX_OFFSET = 16


@dataclass(frozen=True, order=True)
class Item:
    """A thing that can lie on the surface or be in a hand."""

    kind: str
    colour: str


@dataclass(frozen=True)
class Placed:
    """An item on the surface; `shift` moves its drawing by (x, y) pixels."""

    item: Item
    row: int
    column: int
    shift: tuple[int, int]


@dataclass(frozen=True)
class Hand:
    """One hand; `item` is what it holds or uses, None while it rests or points."""

    side: Side
    column: int
    action: Action
    item: Item | None
    shift: tuple[int, int]


@dataclass(frozen=True)
class Look:
    """What is never asked about: skin, sleeve, light in percent, offset of the backdrop in pixels."""

    skin: int
    sleeve: int
    light: int
    offset: int


@dataclass(frozen=True)
class Scene:
    """Everything that one image shows; `placed` is in reading order (back row first, left to right)."""

    environment: str
    landmark: str
    landmark_column: int
    placed: tuple[Placed, ...]
    left: Hand
    right: Hand
    look: Look

    @property
    def surface(self) -> str:
        """The name of the surface, such as "counter"."""
        return PLACES[self.environment].surface

    @property
    def items(self) -> list[Item]:
        """Every item in sight: on the surface in reading order, then the left hand's, then the right hand's."""
        held = [hand.item for hand in (self.left, self.right) if hand.item is not None]
        return [placed.item for placed in self.placed] + held

    def hand(self, side: Side) -> Hand:
        """The hand of that side."""
        return self.left if side == "left" else self.right

    def at(self, row: int, column: int) -> Item | None:
        """The item in a cell of the surface, or None."""
        return next((p.item for p in self.placed if (p.row, p.column) == (row, column)), None)

    def pointed_at(self, side: Side) -> Item | None:
        """The item straight ahead of that hand in the front row, or None."""
        return self.at(FRONT_ROW, self.hand(side).column)


@dataclass(frozen=True)
class Event:
    """What happened between two frames; `row` and `column` say where an item was put, None when it was taken."""

    kind: EventKind
    item: Item
    side: Side | None = None
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Clip:
    """One to three frames and the events between them; `focus` is what the scene was drawn for."""

    frames: tuple[Scene, ...]
    events: tuple[Event, ...] = ()
    focus: Focus | None = None
    subject: str = ""


def sample_clip(rng: np.random.Generator, environment: str, category: str) -> Clip:
    """A clip that suits a question of `category`: 2 or 3 frames for temporal, else one frame."""
    if category == "temporal":
        return _temporal(rng, environment)
    if category == "counting":
        return _counting(rng, environment)
    if category == "environment" and rng.random() < 0.5:
        return few_things(rng, environment)
    return Clip((_scene(rng, environment, _distinct(rng, int(rng.integers(2, 7)))),))


def few_things(rng: np.random.Generator, environment: str) -> Clip:
    """A clip of one frame that suits a description: one to three things lie on the surface."""
    return Clip((_scene(rng, environment, _distinct(rng, int(rng.integers(1, 4)))),), focus="describe")


def _pick(rng: np.random.Generator, options: tuple[T, ...] | list[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _shift(rng: np.random.Generator) -> tuple[int, int]:
    x, y = rng.integers(-JITTER, JITTER + 1, size=2)
    return int(x), int(y)


def _distinct(rng: np.random.Generator, count: int, taken: tuple[Item, ...] = ()) -> list[Item]:
    """`count` different items, none of them among `taken`."""
    free = [item for kind in KINDS for colour in COLOURS if (item := Item(kind, colour)) not in taken]
    return [free[int(i)] for i in rng.choice(len(free), size=count, replace=False)]


def _place(rng: np.random.Generator, items: list[Item]) -> tuple[Placed, ...]:
    """The items on different cells of the surface, in reading order."""
    cells = rng.choice(2 * GRID, size=len(items), replace=False)
    placed = [
        Placed(item, BACK_ROW + int(cell) // GRID, int(cell) % GRID, _shift(rng))
        for item, cell in zip(items, cells, strict=True)
    ]
    return tuple(sorted(placed, key=lambda p: (p.row, p.column)))


def _hand(rng: np.random.Generator, side: Side, scene: Scene, spare: Item) -> Hand:
    """A hand that rests, points at something, or holds or uses `spare`."""
    column = _pick(rng, HAND_COLUMNS[side])
    can_point = scene.at(FRONT_ROW, column) is not None
    action: Action = _pick(rng, ["rest", "point", "hold", "use"] if can_point else ["rest", "hold", "use"])
    return Hand(side, column, action, spare if action in ("hold", "use") else None, _shift(rng))


def _scene(rng: np.random.Generator, environment: str, on_surface: list[Item]) -> Scene:
    """A scene with these items on its surface; the hands do something at random."""
    look = Look(
        skin=int(rng.integers(SKINS)),
        sleeve=int(rng.integers(SLEEVES)),
        light=int(rng.integers(88, 107)),
        offset=int(rng.integers(0, MAX_OFFSET + 1)),
    )
    idle_left = Hand("left", _pick(rng, HAND_COLUMNS["left"]), "rest", None, _shift(rng))
    idle_right = Hand("right", _pick(rng, HAND_COLUMNS["right"]), "rest", None, _shift(rng))
    scene = Scene(
        environment=environment,
        landmark=_pick(rng, LANDMARKS),
        landmark_column=int(rng.integers(GRID)),
        placed=_place(rng, on_surface),
        left=idle_left,
        right=idle_right,
        look=look,
    )
    spare_left, spare_right = _distinct(rng, 2, tuple(on_surface))
    return replace(
        scene,
        left=_hand(rng, "left", scene, spare_left),
        right=_hand(rng, "right", scene, spare_right),
    )


def _counting(rng: np.random.Generator, environment: str) -> Clip:
    """One frame with 1-4 things of one kind or colour among others, or with 1-6 things in all; every number is equally likely."""
    focus: Focus = _pick(rng, ["kind", "colour", "all"])
    if focus == "all":
        count = int(rng.integers(1, 7))
        return Clip((_scene(rng, environment, _distinct(rng, count)),), focus=focus)
    count = int(rng.integers(1, 5))
    subject = _pick(rng, KINDS if focus == "kind" else COLOURS)
    others = COLOURS if focus == "kind" else KINDS
    chosen = [others[int(i)] for i in rng.choice(len(others), size=count, replace=False)]
    counted = [Item(subject, other) if focus == "kind" else Item(other, subject) for other in chosen]
    rest = tuple(Item(kind, colour) for kind in KINDS for colour in COLOURS if subject in (kind, colour))
    distractors = _distinct(rng, int(rng.integers(1, 4)), rest)
    return Clip((_scene(rng, environment, counted + distractors),), focus=focus, subject=subject)


def _temporal(rng: np.random.Generator, environment: str) -> Clip:
    """Two frames with one event, or (one time in four) three frames with two things picked up in turn."""
    items = _distinct(rng, int(rng.integers(2, 6)))
    scene = _scene(rng, environment, items)
    side: Side = _pick(rng, ["left", "right"])
    if rng.random() < 0.25:
        return _two_pick_ups(rng, scene, side)
    kind: EventKind = _pick(rng, ["pick_up", "put_down", "move"])
    if kind == "move":
        return _move(rng, scene)
    emptied = _without_item(scene, side)
    placed = _pick(rng, emptied.placed)
    holding = _take(emptied, placed, side)
    if kind == "pick_up":
        return Clip((_point_free(emptied), _point_free(holding)), (Event("pick_up", placed.item, side),))
    event = Event("put_down", placed.item, side, placed.row, placed.column)
    return Clip((_point_free(holding), _point_free(emptied)), (event,))


def _two_pick_ups(rng: np.random.Generator, scene: Scene, side: Side) -> Clip:
    """Three frames: one hand takes something, then the other hand takes something else."""
    other: Side = "right" if side == "left" else "left"
    start = _without_item(_without_item(scene, side), other)
    first, second = (start.placed[int(i)] for i in rng.choice(len(start.placed), size=2, replace=False))
    middle = _take(start, first, side)
    end = _take(middle, second, other)
    frames = (_point_free(start), _point_free(middle), _point_free(end))
    return Clip(frames, (Event("pick_up", first.item, side), Event("pick_up", second.item, other)))


def _move(rng: np.random.Generator, scene: Scene) -> Clip:
    """Two frames: one thing lies somewhere else in the second."""
    scene = _point_free(scene)
    moved = _pick(rng, scene.placed)
    free = [(r, c) for r in (BACK_ROW, FRONT_ROW) for c in range(GRID) if scene.at(r, c) is None]
    row, column = _pick(rng, free)
    after = [p for p in scene.placed if p is not moved] + [Placed(moved.item, row, column, _shift(rng))]
    later = replace(scene, placed=tuple(sorted(after, key=lambda p: (p.row, p.column))))
    return Clip((scene, later), (Event("move", moved.item, None, row, column),))


def _without_item(scene: Scene, side: Side) -> Scene:
    """The scene with that hand at rest."""
    hand = replace(scene.hand(side), action="rest", item=None)
    return replace(scene, left=hand) if side == "left" else replace(scene, right=hand)


def _take(scene: Scene, placed: Placed, side: Side) -> Scene:
    """The scene after that hand picked `placed` up."""
    hand = replace(scene.hand(side), action="hold", item=placed.item)
    left_over = tuple(p for p in scene.placed if p is not placed)
    taken = replace(scene, placed=left_over)
    return replace(taken, left=hand) if side == "left" else replace(taken, right=hand)


def _point_free(scene: Scene) -> Scene:
    """The scene with pointing hands at rest: what they point at may be taken away."""
    for side in ("left", "right"):
        if scene.hand(side).action == "point":
            scene = _without_item(scene, side)
    return scene
