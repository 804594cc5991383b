"""Pages from templates: one frame and one style sheet for HTML, images inside the file.

    text = render("phase1_teacher", "sample.html", name="train-000017", picture=picture(image, longest=640))

Templates are in `PACKAGE/templates/`. An HTML template extends `frame.html`, and Jinja2 escapes every value in it; Markdown is
rendered as it is. A page loads nothing, so that it opens from a disk without a network.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

_TINY = 256  # pixels; smoothing would blur what a small model sees


def render(package: str, template: str, **values: Any) -> str:
    """A page as text.

    Args:
        package: the package whose `templates/` holds the template.
        template: its file name.
        values: what the template shows; a missing name is an error.
    """
    return _environment(package).get_template(template).render(**values)


@lru_cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("firstsight")]),
        autoescape=select_autoescape(["html"], default=True, disabled_extensions=["md"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture(image: Image.Image, *, longest: int, alt: str = "", lossy: bool = False) -> Markup:
    """An image as an `<img>` element that holds its own data.

    Args:
        image: scaled down if it is larger; kept if it is smaller, and shown pixel by pixel if it is tiny.
        longest: longest side in pixels.
        alt: text in place of the image for those who cannot see it.
        lossy: JPEG where it is smaller than PNG, as it is for photographs.
    """
    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    kinds: dict[str, dict[str, Any]] = {"png": {"optimize": True}}
    if lossy:
        kinds["jpeg"] = {"quality": 82, "optimize": True}
    encoded = {}
    for kind, options in kinds.items():
        buffer = io.BytesIO()
        small.save(buffer, format=kind.upper(), **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    source = f"data:image/{kind};base64," + base64.b64encode(encoded[kind]).decode()
    return Markup('<img{} width="{}" height="{}" alt="{}" src="{}">').format(
        Markup(' class="pixels"') if max(small.size) < _TINY else "", small.width, small.height, alt, source
    )
