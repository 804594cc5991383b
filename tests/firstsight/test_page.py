"""Pages: everything escaped, pictures inside, nothing loaded from elsewhere."""

import base64
import io
import re

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from firstsight.page import picture, render


def decoded(element: str) -> Image.Image:
    content = re.search(r'src="data:image/\w+;base64,([^"]+)"', element)[1]
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_tiny_picture_is_kept_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3)).astype(np.uint8)
    element = picture(Image.fromarray(pixels), longest=320, alt='a "cup" <b>')
    assert 'class="pixels" width="84" height="56" alt="a &#34;cup&#34; &lt;b&gt;"' in element
    assert (np.asarray(decoded(element)) == pixels).all()


def test_a_photograph_is_scaled_and_becomes_a_jpeg_only_where_asked():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3)).astype(np.uint8))
    lossless, lossy = picture(noise, longest=300), picture(noise, longest=300, lossy=True)
    assert decoded(lossless).size == decoded(lossy).size == (300, 200)
    assert "image/png" in lossless
    assert "image/jpeg" in lossy
    assert "pixels" not in lossy


def test_a_value_that_the_template_wants_is_not_left_out():
    with pytest.raises(UndefinedError):
        render("phase1_teacher", "sample.html")
