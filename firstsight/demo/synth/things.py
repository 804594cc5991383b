"""The things and the hands of a scene, as RGBA drawings of one cell each."""

import math
from functools import cache

from PIL import Image

from firstsight.demo.synth.pen import CELL, INK, PAPER, RGB, STEEL, WATER, WOOD, Pen, darker
from firstsight.demo.synth.scenes import Item

SWATCHES: dict[str, RGB] = {
    "red": (220, 44, 48),
    "green": (38, 160, 66),
    "blue": (40, 96, 222),
    "yellow": (250, 208, 40),
    "purple": (150, 64, 196),
    "white": (248, 248, 246),
}
SKIN_TONES: tuple[RGB, ...] = ((250, 214, 186), (226, 176, 138), (176, 122, 84), (112, 74, 52))
SLEEVE_TONES: tuple[RGB, ...] = ((70, 80, 100), (120, 130, 120), (96, 66, 60), (58, 96, 104))


def _mug(pen: Pen, colour: RGB) -> None:
    pen.oval(31, 19, 50, 38, None, ink=5.2)
    pen.arc(32, 20, 49, 37, 0, 360, colour, 2.4)
    pen.box(9, 12, 39, 47, colour, radius=5)
    pen.oval(9, 8, 39, 18, darker(colour))


def _bottle(pen: Pen, colour: RGB) -> None:
    pen.box(23, 4, 33, 11, darker(colour), radius=2)
    pen.shape([(24, 11), (32, 11), (32, 17), (39, 24), (39, 50), (17, 50), (17, 24), (24, 17)], colour)
    pen.box(18, 30, 38, 41, PAPER, ink=1)


def _book(pen: Pen, colour: RGB) -> None:
    pen.box(9, 10, 47, 48, colour, radius=2)
    pen.box(9, 10, 17, 48, darker(colour), radius=2)
    pen.box(23, 17, 41, 25, PAPER, ink=1)
    pen.line([(13, 44), (46, 44)], PAPER, 2)


def _apple(pen: Pen, colour: RGB) -> None:
    pen.line([(28, 18), (31, 6)], WOOD, 3)
    pen.oval(31, 5, 43, 13, (96, 170, 60), ink=1.2)
    pen.oval(8, 14, 34, 47, colour)
    pen.oval(22, 14, 48, 47, colour)
    pen.oval(11, 17, 45, 46, colour, ink=0)


def _spoon(pen: Pen, colour: RGB) -> None:
    pen.box(25.5, 24, 30.5, 51, colour, radius=2.4, ink=1.4)
    pen.oval(19, 4, 37, 28, colour)
    pen.oval(23, 8, 33, 23, darker(colour), ink=0)


def _hammer(pen: Pen, colour: RGB) -> None:
    pen.box(25, 14, 32, 51, WOOD, radius=2)
    pen.box(10, 6, 47, 20, colour, radius=2)
    pen.box(10, 6, 17, 20, darker(colour), radius=2)


def _key(pen: Pen, colour: RGB) -> None:
    pen.box(25.5, 24, 31, 51, colour, ink=1.4)
    pen.box(31, 38, 38, 42, colour, ink=1.2)
    pen.box(31, 45, 40, 50, colour, ink=1.2)
    pen.oval(16, 4, 41, 28, colour)
    pen.oval(23.5, 11, 33.5, 21, (60, 56, 62), ink=1)


def _bowl(pen: Pen, colour: RGB) -> None:
    pen.pie(5, -2, 51, 46, 0, 180, colour)
    pen.box(19, 43, 37, 48, darker(colour), radius=1)
    pen.oval(5, 16, 51, 28, darker(colour))


def _open_book(pen: Pen, colour: RGB) -> None:
    pen.shape([(3, 14), (28, 20), (53, 14), (53, 46), (28, 51), (3, 46)], colour)
    pen.shape([(7, 15), (28, 21), (28, 46), (7, 41)], PAPER, ink=1)
    pen.shape([(49, 15), (28, 21), (28, 46), (49, 41)], PAPER, ink=1)
    for y in (23, 29, 35):
        pen.line([(11, y), (24, y + 3.5)], STEEL, 1.6)
        pen.line([(45, y), (32, y + 3.5)], STEEL, 1.6)


def _bitten_apple(pen: Pen, colour: RGB) -> None:
    _apple(pen, colour)
    pen.oval(29, 15, 55, 43, PAPER)
    pen.erase(35, 12, 63, 46)


def _drop(pen: Pen, x: float, y: float) -> None:
    pen.oval(x - 3, y - 4, x + 3, y + 4, WATER, ink=1)


_DRAWINGS = {
    "mug": _mug,
    "bottle": _bottle,
    "book": _book,
    "apple": _apple,
    "spoon": _spoon,
    "hammer": _hammer,
    "key": _key,
    "bowl": _bowl,
}
# Degrees by which a thing leans (counter-clockwise) while it is used.
_LEANS = {"bottle": 115.0, "spoon": 140.0, "hammer": 50.0, "key": 90.0, "bowl": 50.0}


@cache
def item_sprite(item: Item) -> Image.Image:
    """The item as it lies on the surface, RGBA, one cell."""
    pen = Pen()
    pen.shadow(6, 43, 50, 54)
    _DRAWINGS[item.kind](pen, SWATCHES[item.colour])
    return pen.small()


@cache
def used_sprite(item: Item) -> Image.Image:
    """The item while it is used, RGBA, one cell."""
    colour = SWATCHES[item.colour]
    pen = Pen()
    if item.kind == "book":
        _open_book(pen, colour)
        return pen.small()
    if item.kind == "apple":
        _bitten_apple(pen, colour)
        return pen.small()
    _DRAWINGS[item.kind](pen, colour)
    if item.kind in _LEANS:
        pen.image = pen.image.rotate(_LEANS[item.kind], Image.Resampling.BICUBIC)
    after = Pen()
    if item.kind == "mug":
        after.line([(24, 0), (24, 15)], INK, 8)
        after.line([(24, 0), (24, 15)], WATER, 5.4)
        after.oval(16, 10, 32, 17, WATER, ink=1)
    elif item.kind in ("bottle", "bowl"):
        for x, y in ((5, 44), (11, 51)) if item.kind == "bottle" else ((6, 42), (14, 50)):
            _drop(after, x, y)
    else:
        _swing(after, item.kind)
    return Image.alpha_composite(pen.image, after.image).resize((CELL, CELL), Image.Resampling.LANCZOS)


def _swing(pen: Pen, kind: str) -> None:
    """Curved strokes that show how a spoon stirs, a hammer swings or a key turns."""
    bounds = {"spoon": (8, 34, 48, 54, 20, 330), "hammer": (2, 2, 54, 54, 280, 350), "key": (8, 8, 48, 48, 290, 400)}
    left, top, right, bottom, start, end = bounds[kind]
    pen.arc(left, top, right, bottom, start, end, INK, 4.4)
    pen.arc(left + 0.8, top + 0.8, right - 0.8, bottom - 0.8, start, end, WATER, 2.8)
    angle = math.radians(end)
    x = (left + right) / 2 + (right - left) / 2 * math.cos(angle)
    y = (top + bottom) / 2 + (bottom - top) / 2 * math.sin(angle)
    pen.oval(x - 4, y - 4, x + 4, y + 4, WATER, ink=1.2)


def _arm(pen: Pen, skin: RGB, sleeve: RGB) -> None:
    pen.shape([(18, 66), (19, 50), (37, 50), (38, 66)], skin)
    pen.shape([(13, 66), (15, 54), (41, 54), (43, 66)], sleeve)


@cache
def hand_sprite(action: str, skin_index: int, sleeve_index: int) -> Image.Image:
    """A right hand with its forearm, RGBA, one cell wide and 10 pixels taller than a cell, so that the arm runs out of the image."""
    skin, sleeve = SKIN_TONES[skin_index], SLEEVE_TONES[sleeve_index]
    pen = Pen(CELL, CELL + 10)
    _arm(pen, skin, sleeve)
    if action == "rest":
        for x, top in ((13, 17), (21, 11), (29, 10), (37, 15)):
            pen.box(x, top, x + 8, 40, skin, radius=4)
        pen.box(2, 32, 18, 40, skin, radius=4)
        pen.box(12, 29, 46, 53, skin, radius=8)
        pen.box(14, 31, 44, 51, skin, radius=7, ink=0)
    elif action == "point":
        pen.box(20, 2, 29, 40, skin, radius=4.5)
        pen.box(14, 30, 46, 53, skin, radius=8)
        for x in (29, 36):
            pen.box(x, 29, x + 9, 42, skin, radius=4)
        pen.box(10, 36, 27, 45, skin, radius=4)
    else:
        pen.box(11, 39, 46, 57, skin, radius=7)
        for x in (11, 20, 29, 38):
            pen.box(x, 37, x + 9, 49, skin, radius=4, ink=1.2)
    return pen.small()


@cache
def left_hand_sprite(action: str, skin_index: int, sleeve_index: int) -> Image.Image:
    """A left hand with its forearm: the mirror image of the right one."""
    return hand_sprite(action, skin_index, sleeve_index).transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@cache
def held_sprite(item: Item, used: bool) -> Image.Image:
    """The item as a hand holds it: a little smaller, so that the hand covers little of it."""
    sprite = used_sprite(item) if used else _floating_sprite(item)
    return sprite.resize((46, 46), Image.Resampling.LANCZOS)


@cache
def _floating_sprite(item: Item) -> Image.Image:
    """The item off the surface, RGBA, one cell."""
    pen = Pen()
    _DRAWINGS[item.kind](pen, SWATCHES[item.colour])
    return pen.small()
