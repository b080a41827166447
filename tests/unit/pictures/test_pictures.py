"""One picture, whatever it is brought as: every mode, type and order of axes gives the same tensor, to quantisation."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from structlog.testing import capture_logs

from vitrail.core.method.inputs import Extras
from vitrail.errors import ConfigError
from vitrail.pictures.picture_files import of_any_size, open_picture
from vitrail.pictures.picture_reader import GROUND, read, with_pictures

HEIGHT, WIDTH = 6, 9
GREY = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 4 + 20  # from 20 to 232
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
STEP = 1 / 255


def levels(found):
    """What was read as floats in [0, 1], Float["h w 3"]."""
    if isinstance(found, Image.Image):
        assert found.mode == "RGB"
        return np.asarray(found) / 255
    assert found.shape[:2] == (1, 3)
    return found[0].permute(1, 2, 0).double().numpy()


def same(found, wanted, within=STEP):
    shape = levels(found).shape
    assert shape == (HEIGHT, WIDTH, 3)
    expected = np.repeat(wanted[..., None], 3, -1) if wanted.ndim == 2 else wanted
    assert np.abs(levels(found) - expected / 255).max() <= within
    return True


def sixteen(mode):
    picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert picture.mode == "I;16"
    return picture if mode == "I;16" else picture.convert(mode)


GREYS = {
    "L": lambda: Image.fromarray(GREY),
    "LA": lambda: Image.fromarray(GREY).convert("LA"),
    "P": lambda: Image.fromarray(GREY).convert("P"),
    "I;16": lambda: sixteen("I;16"),
    "I;16B": lambda: Image.frombytes("I;16B", (WIDTH, HEIGHT), (GREY.astype(">u2") * 257).astype(">u2").tobytes()),
    "I": lambda: Image.fromarray(GREY.astype(np.int32) * 257),
    "F": lambda: Image.fromarray((GREY / 255).astype(np.float32)),
}
COLOURS = {
    "RGB": lambda: Image.fromarray(COLOUR),
    "RGBA": lambda: Image.fromarray(COLOUR).convert("RGBA"),
    "RGBX": lambda: Image.fromarray(COLOUR).convert("RGBX"),
    "CMYK": lambda: Image.fromarray(COLOUR).convert("CMYK"),
    "YCbCr": lambda: Image.fromarray(COLOUR).convert("YCbCr"),
    "HSV": lambda: Image.fromarray(COLOUR).convert("HSV"),
    "LAB": lambda: ImageCms.profileToProfile(
        Image.fromarray(COLOUR), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    ),
}
LOSSY = {"YCbCr": 4 * STEP, "HSV": 6 * STEP, "LAB": 16 * STEP}  # what one level of their axes moves RGB by


@pytest.mark.parametrize("mode", GREYS)
def test_every_grey_mode_is_the_same_picture(mode):
    assert GREYS[mode]().mode == mode
    assert same(read(GREYS[mode](), "image"), GREY, 0.51 * STEP)


@pytest.mark.parametrize("mode", COLOURS)
def test_every_mode_of_colours_is_the_same_picture(mode):
    assert COLOURS[mode]().mode == mode
    assert same(read(COLOURS[mode](), "image"), COLOUR, LOSSY.get(mode, 0.51 * STEP))


def test_black_and_white_is_black_and_white():
    drawn = np.where(GREY > 120, 255, 0).astype(np.uint8)
    assert same(read(Image.fromarray(drawn).convert("1"), "image"), drawn, 0)
    for values in (drawn > 0, torch.from_numpy(drawn > 0)):
        assert same(read(values, "image"), drawn, 0)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colours"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_every_type_and_order_of_axes_is_the_same_picture(kind, picture, library):
    scaled = {"uint8": picture, "uint16": picture.astype(np.uint16) * 257}.get(kind, (picture / 255).astype(kind))
    last = scaled if scaled.ndim == 3 else scaled[..., None]
    shapes = [last, last.transpose(2, 0, 1), last[None], last.transpose(2, 0, 1)[None]]
    shapes += [scaled] if picture.ndim == 2 else []
    for values in shapes:
        given = values if library == "numpy" else torch.from_numpy(np.ascontiguousarray(values))
        before = given.copy() if library == "numpy" else given.clone()
        assert same(read(given, "image"), picture, 0.51 * STEP)
        assert same(read([given], "image"), picture, 0.51 * STEP)
        assert (given == before).all()


@pytest.mark.parametrize("kind", [">u2", ">f4", ">f8", "<u2", "longdouble"])
def test_numbers_in_the_order_of_bytes_of_a_file_are_the_same_picture(kind):
    """As arrays come out of FITS, TIFF and raw files."""
    scaled = COLOUR.astype(kind) * 257 if kind.endswith("u2") else (COLOUR / 255).astype(kind)
    given = scaled.astype(kind)
    assert given.dtype == np.dtype(kind)
    assert same(read(given, "image"), COLOUR, 0.51 * STEP)


# ---------------------------------------------------------------- transparent pictures


ALPHA = np.where(np.arange(WIDTH) < 4, 0, 255).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
LAID = np.where(ALPHA[..., None] == 0, 255, COLOUR)


def with_alpha():
    picture = Image.fromarray(COLOUR)
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


@pytest.mark.parametrize(
    "given",
    [
        with_alpha,
        lambda: with_alpha().convert("RGBa"),
        lambda: np.asarray(with_alpha()),
        lambda: torch.from_numpy(np.array(with_alpha())).permute(2, 0, 1),
        lambda: (np.asarray(with_alpha()) / 255).astype(np.float32),
    ],
)
def test_what_is_transparent_is_laid_on_the_ground_and_said(given):
    with capture_logs() as events:
        found = read(given(), "image")
    assert same(found, LAID) and GROUND == "white"
    assert [(event["event"], event["input"], event["ground"]) for event in events] == [
        ("picture.composited", "image", "white")
    ]


def test_a_palette_and_grey_levels_with_a_transparent_one(tmp_path):
    drawn = np.where(np.arange(WIDTH) < 4, 20, 200).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
    grey = Image.fromarray(drawn)
    deep = Image.fromarray(drawn.astype(np.uint16) * 257)
    for number, (picture, hidden) in enumerate([(grey, 20), (deep, 20 * 257)]):
        picture.save(tmp_path / f"{number}.png", transparency=hidden)
        assert same(open_picture(str(tmp_path / f"{number}.png")), np.where(drawn == 20, 255, drawn))
    palette = Image.fromarray(drawn).convert("P")
    palette.save(tmp_path / "p.png", transparency=20)
    assert same(open_picture(str(tmp_path / "p.png")), np.where(drawn == 20, 255, drawn))


def test_grey_levels_with_premultiplied_alpha_are_grey_levels_with_alpha():
    grey = Image.fromarray(GREY)
    grey.putalpha(Image.fromarray(ALPHA))
    assert same(read(grey.convert("La"), "image"), np.where(ALPHA == 0, 255, GREY))


def test_an_opaque_picture_is_laid_on_nothing():
    with capture_logs() as events:
        assert same(read(Image.fromarray(COLOUR).convert("RGBA"), "image"), COLOUR, 0)
    assert events == []


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_a_file_is_turned_upright_whatever_its_mode(tmp_path, orientation, deep):
    values = GREY.astype(np.uint16) * 257 if deep else GREY
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(values).save(file, exif=exif)
    turned = open_picture(str(file))
    plain = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY[::-1].T,
        7: GREY[::-1, ::-1].T,
        8: GREY.T[::-1],
    }[orientation]
    assert np.array_equal(np.asarray(turned)[..., 0], plain)


def test_a_float_tiff_and_a_deep_png_are_no_sheets(tmp_path):
    for name, mode in (("f.tiff", "F"), ("i.png", "I;16"), ("i.tiff", "I")):
        GREYS[mode]().save(tmp_path / name)
        assert same(open_picture(str(tmp_path / name)), GREY, 0.51 * STEP)


def test_a_format_that_another_program_draws_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("a program was run"))
    Image.fromarray(COLOUR).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="is EPS, which a program draws; convert it to PNG"):
        open_picture(str(tmp_path / "x.png"))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    assert same(open_picture("~/x.png"), COLOUR, 0)


# ---------------------------------------------------------------- what is refused


F32 = (GREY / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.full((4, 4), np.nan), "some values are not finite"),
        (torch.full((3, 4, 4), float("inf")), "some values are not finite"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "some values are not finite"),
        (F32 * 255, "floats must be in [0, 1], and go from 20 to 232; divide 8 bits by 255"),
        (torch.from_numpy(2 * F32 - 1), "map [-1, 1] to it by (x + 1) / 2"),
        (Image.fromarray(F32 * 255), "mode 'F' must be in [0, 1]"),
        (GREY.astype(np.int64), "numbers of type int64 have no range of their own; give uint8"),
        (torch.from_numpy(GREY).int(), "numbers of type int32 have no range of their own"),
        (Image.fromarray(GREY.astype(np.int32) * 70000), "scale them to 16 bits"),
        (Image.fromarray(GREY).convert("I"), "convert a picture of 8 bits to mode 'L'"),
        (np.zeros((0, 4, 3), np.uint8), "got (0, 4, 3)"),
        (torch.zeros(0), "got (0,)"),
        (np.zeros((5, 5, 5), np.uint8), "got (5, 5, 5)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture is wanted, got 2 in one array"),
        ([GREY, GREY], "one picture is wanted, got a list of 2"),
        ("x.png", "a Pillow image, a numpy array or a tensor is wanted, got str"),
        (np.array(["a"]), "numbers of type <U1 have no range"),
        (torch.from_numpy(F32).to(torch.float8_e4m3fn), "numbers of type float8_e4m3fn have no range"),
        (np.ma.masked_greater(F32, 0.5), "the array masks values, which a picture cannot; fill them"),
        (torch.from_numpy(F32).to_sparse(), "a dense tensor with values is wanted, got a torch.sparse_coo"),
        (torch.zeros((3, 4, 4), device="meta"), "a dense tensor with values is wanted, got a torch.strided on meta"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(given, told):
    with pytest.raises(ConfigError) as caught:
        read(given, "the hint")
    assert str(caught.value).startswith("the hint") and told in str(caught.value)


def test_a_hint_may_mark_what_is_to_be_drawn():
    marked = torch.from_numpy(F32).clone()
    marked[0] = -1.0
    read_hint = with_pictures(Extras(control_image=marked)).control_image
    assert torch.equal(read_hint[0, 1], marked)
    with pytest.raises(ConfigError, match=r"control_image\[1\]: floats must be in \[0, 1\], or -1 where"):
        with_pictures(Extras(control_image=[marked, marked - 0.5]))


def test_pictures_of_ip_adapters_are_read_one_by_one():
    floats = torch.randn(1, 3, 8, 8)  # what the processor of an encoder gives
    given = Extras(ip_adapter_image=[[GREY, F32], floats])
    (first, second), third = with_pictures(given).ip_adapter_image
    assert same(first, GREY) and same(second, GREY) and third is floats


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_text("no picture")
    with pytest.raises(ConfigError, match="cannot be read as a picture: it is none, or cut off"):
        open_picture(str(file))
    with pytest.raises(ConfigError, match="cannot be read as a picture: it is no regular file"):
        open_picture("/dev/zero")
    Image.new("RGB", (8, 8)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(ConfigError, match=r"is too large to be read; .*64 pixels\) exceeds limit of 62 pixels"):
        open_picture(str(file))


def test_the_limit_on_pixels_is_as_before_when_threads_lifted_it_at_once():
    before, entered = Image.MAX_IMAGE_PIXELS, threading.Event()

    def lift():
        with of_any_size():
            entered.set()

    with of_any_size():
        other = threading.Thread(target=lift)
        other.start()
        assert not entered.wait(0.1), "both lifted it"
        assert Image.MAX_IMAGE_PIXELS is None
    other.join()
    assert entered.is_set() and before == Image.MAX_IMAGE_PIXELS
