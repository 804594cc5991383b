"""Every mode that Pillow opens is shown as an image viewer shows it, or refused by name."""

import base64
import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageMode, features

from firstsight.data.check.reading import check_data
from firstsight.data.images import SHOWN, InlineImage, image_digest, image_name, image_path
from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
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


def test_names_of_images_where_links_lead_to_the_root(tmp_path):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    PLAIN.save(data / "sub" / "a.png")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "other").symlink_to(data / "sub")
    (data / "b.png").symlink_to(data / "sub" / "a.png")
    for root in (data, tmp_path / "link"):
        for given in (
            "sub/a.png",
            data / "sub" / "a.png",
            tmp_path / "link" / "sub" / "a.png",
            tmp_path / "other" / "a.png",
        ):
            name = image_name(image_path(str(given), root, "t:1"), root)
            assert name == "sub/a.png"
            assert image_path(name, root, "t:1").is_file()
        assert image_name(image_path("b.png", root, "t:1"), root) == "b.png"


def tiff(values, *, bits, photometric=1, sample_format=1, order="<", packed=False):
    """A TIFF of one row, written without Pillow."""
    digits = "".join(f"{value:0{bits}b}" for value in values)
    data = bytes(int(digits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(digits), 8))
    if bits == 16:
        data = struct.pack(f"{order}{len(values)}H", *values)
    data = zlib.compress(data) if packed else data
    tags = {256: len(values), 257: 1, 258: bits, 259: 8 if packed else 1, 262: photometric, 273: 134}
    tags |= {277: 1, 278: 1, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("bits", "photometric", "order"),
    [(4, 0, "<"), (4, 1, ">"), (8, 0, ">"), (8, 1, "<"), (12, 1, "<"), (16, 0, "<"), (16, 1, "<"), (16, 1, ">")],
)
def test_greys_of_a_tiff_are_shown_by_its_tags(bits, photometric, order, packed):
    top = 2**bits - 1
    values = [0, top // 3, top // 2, top, 0]
    data = tiff(values, bits=bits, photometric=photometric, order=order, packed=packed)
    shown = np.asarray(sample_of(data).open_images()[0]).astype(float)[0]
    expected = np.array(values) * 255 / top
    if photometric == 0:  # white is zero
        expected = 255 - expected
    assert np.abs(shown - expected[:, None]).max() <= 0.5


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_values_are_refused(bits):
    with pytest.raises(DataError, match=r"which cannot be shown in one clear way; save it as 8-bit RGB"):
        sample_of(tiff([0, 1], bits=bits, sample_format=2)).open_images()


def test_deep_grey_is_transparent_where_the_file_says_so():
    values = np.array([[0, 300, 65_535]], dtype=np.uint16)
    shown = np.asarray(seen(Image.fromarray(values), transparency=300))[..., 0]
    assert shown.tolist() == [[0, 255, 255]]


def test_deep_grey_without_a_white_is_refused():
    cards = {"SIMPLE": "T", "BITPIX": "16", "NAXIS": "2", "NAXIS1": "2", "NAXIS2": "2"}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END"
    with pytest.raises(DataError, match=r"has the mode I;16 \(FITS\), which cannot be shown"):
        sample_of(head.ljust(2880).encode() + bytes(2880)).open_images()


def test_no_other_program_draws_an_image(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    buffer = io.BytesIO()
    PLAIN.save(buffer, "EPS")
    for look in ("open_images", "image_sizes"):
        with pytest.raises(DataError, match=r"x\.png has the format EPS, which another program would have to draw"):
            getattr(sample_of(buffer.getvalue()), look)()


KINDS = ["JPEG", "PNG", "TIFF", "WEBP", "MPO", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind(kind, orientation):
    """The header's size is the size as shown, and the pixels are where a viewer has them."""
    quarters = Image.new("RGB", (64, 32), "white")
    quarters.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    quarters.save(buffer, kind, exif=exif)
    sample = sample_of(buffer.getvalue())
    shown = sample.open_images()[0]
    assert sample.image_sizes() == [shown.size] == [(64, 32) if orientation < 5 else (32, 64)]
    dark = {
        (x, y)
        for x in (0, 1)
        for y in (0, 1)
        if shown.getpixel((x * (shown.width - 1), y * (shown.height - 1)))[0] < 128
    }
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    assert dark == {corners[orientation]}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata
@pytest.mark.parametrize("kind", [*KINDS, "GIF", "BMP", "DDS", "ICO", "JPEG2000", "ICNS", "TGA"])
def test_whatever_is_damaged_is_one_error_and_the_check_tells_it(tmp_path, kind):
    draws = random.Random(kind)
    exif = Image.Exif()
    exif[274] = 6
    exif[271], exif[282] = "maker", (72, 1)
    exif.get_ifd(0x8769)[36867] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    PLAIN.resize((33, 21)).save(buffer, kind, **({"exif": exif} if kind in KINDS else {}))
    refused, lines = 0, []
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(draws.choice((1, 2, 5))):
            data[draws.randrange(min(len(data), 400))] = draws.choice((0, 255, draws.randrange(256)))
        data = data[: draws.randrange(1, len(data))] if draws.random() < 0.1 else data
        sample = sample_of(bytes(data))
        try:
            header, (shown,) = sample.image_sizes(), sample.open_images()
            assert header == [shown.size]
        except DataError:
            refused += 1
        url = "data:image/x;base64," + base64.b64encode(data).decode()
        lines.append(json.dumps({"question": f"{len(lines)}", "answer": "a", "image": url}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    report = check_data([DataSource(files=(tmp_path / "rows.jsonl",), root=tmp_path)])
    assert report.fault_count == refused
    assert not any("\n" in fault for fault in report.faults)
