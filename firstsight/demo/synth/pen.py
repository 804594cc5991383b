"""Shapes with outlines, drawn four times as large and shrunk, so that edges are smooth."""

from PIL import Image, ImageDraw

CELL = 56

RGB = tuple[int, int, int]
Point = tuple[float, float]

INK: RGB = (38, 34, 44)
STEEL: RGB = (150, 156, 166)
WOOD: RGB = (166, 116, 66)
PAPER: RGB = (250, 247, 236)
WATER: RGB = (92, 178, 240)

OVERSAMPLING = 4


class Pen:
    """Shapes in pixels of the cell, filled and outlined, on a canvas four times as large."""

    def __init__(self, width: int = CELL, height: int = CELL) -> None:
        self.image = Image.new("RGBA", (width * OVERSAMPLING, height * OVERSAMPLING), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, left: float, top: float, right: float, bottom: float, fill: RGB, radius: float = 0.0, ink: float = 1.6
    ) -> None:
        bounds = self._scaled([(left, top), (right, bottom)])
        self._draw.rounded_rectangle(bounds, radius * OVERSAMPLING, fill, INK, round(ink * OVERSAMPLING))

    def oval(self, left: float, top: float, right: float, bottom: float, fill: RGB | None, ink: float = 1.6) -> None:
        self._draw.ellipse(self._scaled([(left, top), (right, bottom)]), fill, INK, round(ink * OVERSAMPLING))

    def shape(self, points: list[Point], fill: RGB, ink: float = 1.6) -> None:
        scaled = self._scaled(points)
        self._draw.polygon(scaled, fill)
        if ink:
            self._draw.line([*scaled, *scaled[:2]], INK, round(ink * OVERSAMPLING), joint="curve")

    def line(self, points: list[Point], colour: RGB, width: float) -> None:
        self._draw.line(self._scaled(points), colour, round(width * OVERSAMPLING), joint="curve")

    def arc(
        self, left: float, top: float, right: float, bottom: float, start: float, end: float, colour: RGB, width: float
    ) -> None:
        bounds = self._scaled([(left, top), (right, bottom)])
        self._draw.arc(bounds, start, end, colour, round(width * OVERSAMPLING))

    def pie(self, left: float, top: float, right: float, bottom: float, start: float, end: float, fill: RGB) -> None:
        bounds = self._scaled([(left, top), (right, bottom)])
        self._draw.pieslice(bounds, start, end, fill, INK, round(1.6 * OVERSAMPLING))

    def shadow(self, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.ellipse(self._scaled([(left, top), (right, bottom)]), (0, 0, 0, 60))

    def erase(self, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.ellipse(self._scaled([(left, top), (right, bottom)]), (0, 0, 0, 0))

    def small(self, factor: float = 1.0) -> Image.Image:
        """The drawing at its final size times `factor`."""
        width, height = self.image.size
        size = (round(width / OVERSAMPLING * factor), round(height / OVERSAMPLING * factor))
        return self.image.resize(size, Image.Resampling.LANCZOS)

    @staticmethod
    def _scaled(points: list[Point]) -> list[Point]:
        return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def darker(colour: RGB, factor: float = 0.72) -> RGB:
    """The colour in shade."""
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue
