"""Every mode that Pillow opens is shown as an image viewer shows it, or refused by name."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageMode

from firstsight.data.images import SHOWN, InlineImage, image_digest, image_path
from firstsight.data.samples import load_samples
from firstsight.errors import DataError


def seen(image, kind="PNG", **options):
    """What the model gets of a picture that is saved."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return sample_of(buffer.getvalue()).open_images()[0]


def sample_of(data):
    from firstsight.data.sample import Sample

    return Sample(
        id="a",
        messages=(),
        images=(InlineImage("x.png", data),),
        times=None,
        category=None,
        environment=None,
        place="t:1",
    )


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
PLAIN = Image.fromarray(np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=-1))


def test_sixteen_bit_grey_is_shown_from_black_to_white():
    values = np.linspace(0, 65_535, 256).round().astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        shown = np.asarray(seen(Image.fromarray(values), kind))
        assert (shown[..., 0] == (values / 257).round()).all()
        assert (shown[..., 0] == shown[..., 1]).all()
    pgm = b"P5\n16 16\n65535\n" + values.astype(">u2").tobytes()
    assert (np.asarray(sample_of(pgm).open_images()[0])[..., 0] == (values / 257).round()).all()


def test_what_is_transparent_is_shown_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    expected = [(255, 0, 0), (127, 127, 127), (255, 255, 255)]
    assert [seen(clear).getpixel((x, 0)) for x in range(3)] == expected
    grey = Image.new("LA", (2, 1), (0, 0))
    assert seen(grey).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert [seen(palette, transparency=0).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]
    assert seen(palette).getpixel((0, 0)) == (255, 0, 0)
    opaque = PLAIN.convert("RGBA")
    assert np.array_equal(np.asarray(seen(opaque)), np.asarray(PLAIN))


@pytest.mark.parametrize(
    ("mode", "kind", "near"),
    [
        ("1", "PNG", 0),
        ("L", "PNG", 0),
        ("P", "PNG", 0),
        ("RGB", "PNG", 0),
        ("CMYK", "TIFF", 1),
        ("YCbCr", "TIFF", 3),
        ("RGBX", "TIFF", 0),
    ],
)
def test_opaque_modes_keep_their_colours(mode, kind, near):
    image = PLAIN.convert(mode)
    shown = seen(image, kind)
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(image.convert("RGB"), dtype=int)).max() <= near


@pytest.mark.parametrize(("image", "kind"), [(Image.new("F", (2, 2)), "TIFF"), (Image.new("I", (2, 2)), "TIFF")])
def test_modes_that_have_no_one_way_to_be_shown_are_refused(image, kind):
    with pytest.raises(
        DataError,
        match=rf"t:1: image x\.png has the mode {image.mode} \({kind}\), which cannot be shown in one clear way",
    ):
        seen(image, kind)


def test_every_mode_of_pillow_is_decided_upon():
    """Only two are refused wherever they come from."""
    modes = {"1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"}
    modes |= {"I;16", "I;16L", "I;16B", "I;16N"}
    for mode in modes:
        ImageMode.getmode(mode)
    assert modes - set(SHOWN) == {"LAB", "F"}
    assert set(SHOWN) <= modes


def test_the_first_frame_of_an_animation_is_shown():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert sample_of(buffer.getvalue()).open_images()[0].getpixel((0, 0)) == (255, 0, 0)


def test_turned_by_exif():
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    sample = sample_of(buffer.getvalue())
    assert sample.image_sizes() == [(20, 40)] == [image.size for image in sample.open_images()]


def test_bytes_and_file_of_one_picture_have_one_digest(tmp_path):
    buffer = io.BytesIO()
    PLAIN.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert image_digest(tmp_path / "a.png") == image_digest(InlineImage("a", buffer.getvalue()))


def test_any_root_also_the_file_system_s(tmp_path):
    PLAIN.save(tmp_path / "a.png")
    root = tmp_path.parents[-1]
    assert image_path(str(tmp_path / "a.png"), root, "t:1") == tmp_path / "a.png"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "x", "image": str(tmp_path / "a.png")}))
    assert load_samples(tmp_path / "rows.jsonl", root)[0].image_sizes() == [(16, 16)]
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"is outside"):
        image_path("link.png", tmp_path / "inside", "t:1")
    with pytest.raises(DataError, match=r"is not a path"):
        image_path("a\0.png", tmp_path, "t:1")
