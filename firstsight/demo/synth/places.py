"""The surroundings of a scene: the backdrop and the surface of each environment, and the landmarks on the backdrop."""

from collections.abc import Callable
from functools import cache

from PIL import Image

from firstsight.demo.synth.pen import CELL, INK, PAPER, RGB, STEEL, WATER, WOOD, Pen, Point, darker
from firstsight.demo.synth.scenes import GRID, MAX_OFFSET

SIZE = GRID * CELL
WIDTH = SIZE + MAX_OFFSET
# Where the backdrop ends and the surface begins.
EDGE = CELL


@cache
def backdrop(environment: str) -> Image.Image:
    """The empty scene of an environment: RGB, 240 x 224, wider than an image by the largest offset of a look."""
    pen = Pen(WIDTH, SIZE)
    _PLACES[environment](pen)
    return pen.small().convert("RGB")


@cache
def landmark_sprite(landmark: str) -> Image.Image:
    """The landmark in front of the backdrop, RGBA, one cell."""
    pen = Pen()
    _LANDMARKS[landmark](pen)
    return pen.small()


def _fill(pen: Pen, top: float, bottom: float, colour: RGB) -> None:
    pen.box(-4, top, WIDTH + 4, bottom, colour, ink=0)


def _edge(pen: Pen, colour: RGB) -> None:
    """The far rim of the surface."""
    pen.box(-4, EDGE - 3, WIDTH + 4, EDGE + 4, colour, ink=1)


def _kitchen(pen: Pen) -> None:
    _fill(pen, 0, EDGE, (246, 226, 178))
    for row, y in enumerate(range(0, EDGE, 14)):
        pen.line([(0, y), (WIDTH, y)], (220, 190, 132), 1)
        for x in range(-14 + 14 * (row % 2), WIDTH, 28):
            pen.line([(x, y), (x, y + 14)], (220, 190, 132), 1)
    _fill(pen, EDGE, SIZE, (186, 184, 188))
    for index in range(150):
        x, y = (index * 67) % WIDTH, EDGE + 6 + (index * 41) % (SIZE - EDGE - 8)
        pen.oval(x, y, x + 2.4, y + 2.4, (160, 158, 164), ink=0)
    _edge(pen, (150, 148, 154))


def _office(pen: Pen) -> None:
    _fill(pen, 0, EDGE, (126, 146, 176))
    for x in range(0, WIDTH, 30):
        pen.box(x, -4, x + 24, EDGE - 8, (196, 220, 238), ink=1.2)
        pen.line([(x + 12, 0), (x + 12, EDGE - 8)], (96, 112, 140), 1.6)
        pen.line([(x, 22), (x + 24, 22)], (96, 112, 140), 1.6)
    _fill(pen, EDGE, SIZE, (214, 178, 128))
    for y in range(EDGE + 12, SIZE, 17):
        pen.line([(0, y), (WIDTH, y)], (200, 162, 112), 1.4)
    _edge(pen, (176, 136, 90))


def _workshop(pen: Pen) -> None:
    _fill(pen, 0, EDGE, (176, 150, 118))
    for y in range(6, EDGE - 4, 10):
        for x in range(5, WIDTH, 10):
            pen.oval(x, y, x + 3, y + 3, (96, 78, 60), ink=0)
    _fill(pen, EDGE, SIZE, (128, 92, 62))
    for y in range(EDGE, SIZE, 28):
        pen.line([(0, y), (WIDTH, y)], (88, 62, 42), 2.4)
        for x in range((y * 7) % 50, WIDTH, 76):
            pen.oval(x, y + 12, x + 12, y + 17, (108, 76, 50), ink=0)
    _edge(pen, (92, 66, 44))


def _garden(pen: Pen) -> None:
    _fill(pen, 0, 24, (148, 208, 246))
    _fill(pen, 24, EDGE, (92, 168, 76))
    for x in range(-6, WIDTH, 16):
        pen.shape([(x, 50), (x, 18), (x + 5, 12), (x + 10, 18), (x + 10, 50)], (240, 236, 224), ink=1)
    pen.box(-4, 34, WIDTH + 4, 40, (240, 236, 224), ink=1)
    _fill(pen, EDGE, SIZE, (168, 164, 132))
    for y in range(EDGE + 24, SIZE, 24):
        pen.line([(0, y), (WIDTH, y)], (104, 120, 74), 3.4)
    _edge(pen, (128, 126, 94))


def _bathroom(pen: Pen) -> None:
    _fill(pen, 0, EDGE, (150, 214, 214))
    for y in range(0, EDGE, 11):
        pen.line([(0, y), (WIDTH, y)], (232, 250, 250), 1.6)
    for x in range(0, WIDTH, 11):
        pen.line([(x, 0), (x, EDGE)], (232, 250, 250), 1.6)
    _fill(pen, EDGE, SIZE, (150, 186, 200))
    for x in range(0, WIDTH, 28):
        pen.line([(x, EDGE), (x, SIZE)], (174, 206, 218), 1.6)
    for y in range(EDGE, SIZE, 28):
        pen.line([(0, y), (WIDTH, y)], (174, 206, 218), 1.6)
    _edge(pen, (226, 240, 244))


_PLACES: dict[str, Callable[[Pen], None]] = {
    "kitchen": _kitchen,
    "office": _office,
    "workshop": _workshop,
    "garden": _garden,
    "bathroom": _bathroom,
}


def _clock(pen: Pen) -> None:
    pen.oval(10, 6, 46, 42, PAPER, ink=3)
    pen.line([(28, 24), (28, 12)], INK, 2.6)
    pen.line([(28, 24), (37, 28)], INK, 2.6)


def _lamp(pen: Pen) -> None:
    pen.line([(28, 0), (28, 14)], INK, 2.4)
    pen.oval(20, 28, 36, 42, (255, 244, 150), ink=1)
    pen.shape([(22, 13), (34, 13), (48, 34), (8, 34)], (60, 66, 78))


def _plant(pen: Pen) -> None:
    green = (46, 130, 64)
    leaves: tuple[list[Point], ...] = (
        [(28, 34), (8, 22), (6, 8), (22, 16)],
        [(28, 34), (48, 22), (50, 8), (34, 16)],
    )
    for leaf in leaves:
        pen.shape(leaf, green, ink=1.2)
    pen.shape([(28, 36), (20, 14), (28, 1), (36, 14)], darker(green, 1.25), ink=1.2)
    pen.shape([(16, 32), (40, 32), (36, 51), (20, 51)], (190, 104, 62))


def _picture(pen: Pen) -> None:
    pen.box(5, 6, 51, 44, WOOD, ink=1.6)
    pen.box(10, 11, 46, 39, WATER, ink=1)
    pen.shape([(10, 39), (22, 22), (30, 32), (37, 26), (46, 39)], STEEL, ink=1)
    pen.oval(35, 13, 43, 21, (255, 226, 90), ink=0.8)


_LANDMARKS: dict[str, Callable[[Pen], None]] = {"clock": _clock, "lamp": _lamp, "plant": _plant, "picture": _picture}
