"""Images: every kind of file becomes the right 8-bit RGB, or is refused in one sentence; and what a pixel measures."""

import io
import os
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rootsam_lib.data.images import DPI_RANGE, checked_dpi, open_image, read_image, resolution
from rootsam_lib.data.masks import read_mask

IMAGE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
GREY = IMAGE[..., 0].copy()
GREY[0, :2] = 0, 255


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("colours", [False, True], ids=["grey", "colours"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_fewer_bits_than_the_file_has_are_scaled_by_the_range_in_use(bits, colours, ending, tmp_path):
    full = 2**bits - 1
    values = np.round((IMAGE if colours else GREY) / 255 * full).astype(np.uint16)
    values[1, 1] = full
    path = tmp_path / f"i.{ending}"
    cv2.imwrite(str(path), values[..., ::-1] if colours else values)
    said = rf"i\.{ending} \(16-bit\) holds {bits}-bit values: scaled so that {full} becomes 255"
    with pytest.warns(UserWarning, match=said):
        image = read_image(path)
    expected = np.round(values / full * 255)
    assert image.dtype == np.uint8 and abs(image - (expected if colours else expected[..., None])).max() <= 1
    assert image.max() == 255


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(GREY.astype(np.uint16), r"16-bit\) holds 8-bit values", id="8 of 16 bits"),
        pytest.param(GREY.astype(np.int32), r"32-bit\) holds 8-bit values", id="int32, 0 to 255"),
        pytest.param(GREY.astype(np.int32) * 8388607, r"32-bit\) holds 31-bit values", id="int32"),
        pytest.param(GREY.astype(np.float32), r"floating-point\) holds 8-bit values", id="float, 0 to 255"),
        pytest.param((GREY / 255).astype(np.float32), r"floating-point\) holds values from 0 to", id="float, 0 to 1"),
    ],
)
def test_wide_types_are_scaled_and_it_is_said(values, said, tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", values)
    with pytest.warns(UserWarning, match=rf"i\.tif \({said}"):
        image = read_image(tmp_path / "i.tif")
    assert abs(image[..., 0].astype(int) - GREY).max() <= 1


def test_full_16_bits_need_no_word(tmp_path, recwarn):
    cv2.imwrite(str(tmp_path / "c.png"), IMAGE[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read_image(tmp_path / "g.png")[..., 0], GREY)
    image = read_image(tmp_path / "c.png")
    assert abs(image.astype(int) - IMAGE).max() <= 1
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("i.webp", lambda p: Image.fromarray(IMAGE).save(p, lossless=True)),
        ("i.bmp", lambda p: Image.fromarray(IMAGE).save(p)),
        ("alpha.png", lambda p: Image.fromarray(np.dstack([IMAGE, GREY])).save(p)),
        ("separate.tif", lambda p: tifffile.imwrite(p, np.moveaxis(IMAGE, -1, 0), photometric="rgb", planarconfig=2)),
    ],
)
def test_other_kinds_read_as_they_are(name, save, tmp_path):
    save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), IMAGE)


def test_palette_grey_and_one_bit_become_rgb(tmp_path):
    Image.fromarray(IMAGE).quantize(16).save(tmp_path / "p.png")
    Image.fromarray(GREY > 99).save(tmp_path / "b.png")
    Image.fromarray(IMAGE).convert("CMYK").save(tmp_path / "c.jpg")
    assert all(read_image(tmp_path / name).shape == (24, 32, 3) for name in ("p.png", "b.png", "c.jpg"))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 1], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_images_are_turned_upright(orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"e.{ending}"
    Image.fromarray(IMAGE).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_turned_tiffs_of_every_kind(mode, orientation, tmp_path):
    path = tmp_path / "e.tif"
    Image.fromarray(GREY).convert(mode).save(path, tiffinfo={0x0112: orientation})
    with open(path, "rb") as file:  # by its name Pillow maps some of them, sides swapped
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert upright.shape == ((24, 32, 3) if orientation < 5 else (32, 24, 3))
    np.testing.assert_array_equal(read_image(path), upright)


def test_a_rest_of_one_colour_is_said(tmp_path):
    torn, whole = IMAGE.copy(), IMAGE.copy()
    torn[16:], whole[-1] = 128, 255  # what a decoder makes of a file that ends too soon; a scanner's frame
    Image.fromarray(torn).save(tmp_path / "torn.png")
    with pytest.warns(UserWarning, match=r"torn\.png: the lowest 8 of 24 rows are of one colour: the file may be dam"):
        read_image(tmp_path / "torn.png")
    Image.fromarray(whole).save(tmp_path / "whole.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "whole.png")


def two_pages(path, **options):
    Image.fromarray(IMAGE).save(path, save_all=True, append_images=[Image.fromarray(255 - IMAGE)], **options)


def turned_16_bits(path):
    tifffile.imwrite(path, GREY.astype(np.uint16) * 257, extratags=[(0x0112, "H", 1, 6, True)])


def not_finite(path):
    tifffile.imwrite(path, np.where(GREY > 9, np.nan, 1).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("pages.tif", two_pages, r"pages\.tif holds 2 pages or frames: save the one that is meant"),
        ("film.webp", two_pages, r"film\.webp holds 2 pages"),
        ("turned.tif", turned_16_bits, r"turned\.tif cannot be read .*more than 8 bits and EXIF orientation 6"),
        ("nan.tif", not_finite, r"nan\.tif holds pixels that are no number"),
        ("neg.tif", lambda p: tifffile.imwrite(p, GREY.astype(np.int32) - 9), r"neg\.tif holds values from -9"),
        ("double.tif", lambda p: tifffile.imwrite(p, GREY / 255), r"double\.tif cannot be .*of a kind that is not"),
        ("text.png", lambda p: p.write_text("<html>404</html>"), r"text\.png cannot be read as an image .*damaged"),
        ("empty.jpg", lambda p: p.write_bytes(b""), r"empty\.jpg is empty \(0 bytes\): copy it again"),
        (
            "lfs.png",
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
            r"lfs\.png only stands for .*pull",
        ),
        (
            "bright.tif",
            lambda p: tifffile.imwrite(p, GREY.astype(np.float32) / 150),
            r"bright\.tif holds values from 0 to 1\.7",
        ),
        (
            "white0.tif",
            lambda p: tifffile.imwrite(p, GREY / np.float32(255), photometric="miniswhite"),
            "and 0 is white",
        ),
        ("pipe.png", os.mkfifo, r"pipe\.png is no regular file \(a folder, pipe"),
        ("folder.png", lambda p: p.mkdir(), r"folder\.png is no regular file"),
    ],
)
def test_what_cannot_be_an_image_is_refused(name, harm, message, tmp_path):
    harm(tmp_path / name)
    with pytest.raises(ValueError, match=message) as refused:
        read_image(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_names_that_cannot_be_printed_or_are_too_long(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"caf\\xe9\.png cannot be read") as refused:
        read_image(path)
    str(refused.value).encode()
    with pytest.raises(ValueError, match="File name too long"):
        read_image(tmp_path / ("a" * 400 + ".png"))
    with pytest.raises(FileNotFoundError, match=r"a\.png does not exist"):
        read_image(tmp_path / "a.png")


def test_large_scans_are_allowed_and_larger_ones_on_demand(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (16_000, 11_500)).save(path)  # 184 megapixels: Pillow alone refuses it as an attack
    assert open_image(path).size == (16_000, 11_500)
    message = r"large\.png has 184\.0 megapixels, and max_megapixels is 100: raise it \(--max-megapixels\) if 2\.2 GB"
    with pytest.raises(ValueError, match=message):
        open_image(path, max_megapixels=100)
    for wrong in (0, float("nan"), "many"):
        with pytest.raises(ValueError, match="max_megapixels is"):
            open_image(path, max_megapixels=wrong)


def test_damaged_exif_does_not_stop_an_image(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff", quality=100)
    assert read_image(tmp_path / "a.jpg").shape == IMAGE.shape and resolution(tmp_path / "a.jpg")[0] is None


WHOLE = {
    ending: (lambda file: (Image.fromarray(IMAGE).save(file, kind, dpi=(300, 300)), file.getvalue())[1])(io.BytesIO())
    for ending, kind in (("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("webp", "WEBP"), ("bmp", "BMP"))
}


@pytest.mark.filterwarnings("ignore")
@given(
    ending=st.sampled_from(sorted(WHOLE)),
    cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_gives_pixels_or_one_sentence(ending, cut, flips):
    content = bytearray(WHOLE[ending][: cut or None] if cut < 300 else WHOLE[ending])
    for place, change in flips:
        content[place % len(content)] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        path.write_bytes(content)
        for read in (read_image, read_mask, resolution):
            try:
                read(path, **({"max_megapixels": 2} if read is not resolution else {}))
            except ValueError as refused:
                assert f"a.{ending}" in str(refused) and "\n" not in str(refused)


# ---------------------------------------------------------------- resolution


def save(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGE).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "dpi"),
    [
        ("T001_600dpi_001.png", 600),
        ("x/300dpi_2021-04-05.png", 300),
        ("dpi300/T1_600dpi.png", 600),
        ("dpi300/T1_600.png", 300),
        ("a/X_DPI120.png", 120),
        ("Peanut_736x552_DPI150/X.png", 150),
        ("scans_600dpi/images/X.png", 600),
        ("scan.300dpi.png", 300),
        ("600dpi001.png", 600),
        ("T001_dpi_001.png", None),  # not directly bound
        ("2021-04-05_dpi.png", None),
        ("rapidpi300.png", None),
        ("v1.300dpi.png", None),
        ("300dpis.png", None),
    ],
)
def test_resolution_from_the_name(name, dpi, tmp_path):
    place = "name" if "dpi" in name.lower().split("/")[-1] else "folder's name"
    said = f"{dpi} dpi from the {place}" if dpi else "no resolution"
    assert resolution(save(tmp_path / name)) == (dpi, said)


def test_a_folder_says_its_resolution_however_it_is_typed(tmp_path, monkeypatch):
    save(tmp_path / "scans_300dpi" / "x.png")
    monkeypatch.chdir(tmp_path / "scans_300dpi")
    assert resolution("x.png") == resolution("./x.png") == (300, "300 dpi from the folder's name")


def exif(x, y=None, unit=2):
    tags = Image.Exif()
    tags[0x011A], tags[0x011B], tags[0x0128] = x, y or x, unit
    return tags


@pytest.mark.parametrize(
    ("name", "options", "dpi"),
    [
        ("a.jpg", {"dpi": (300, 300)}, 300),
        ("a.png", {"dpi": (300, 300)}, 300),  # kept as 11811 dots per metre
        ("a.bmp", {"dpi": (300, 300)}, 300),
        ("a.tif", {"dpi": (300, 300)}, 300),
        ("a.tif", {"tiffinfo": {0x011A: 300.0, 0x011B: 300.0, 0x0128: 1}}, None),  # no unit
        ("a.tif", {"tiffinfo": {0x011A: 300.0, 0x011B: 300.0, 0x0128: 2}}, 300),
        ("a.tif", {"tiffinfo": {0x011A: 118.11, 0x011B: 118.11, 0x0128: 3}}, 300),  # per cm
        ("a.jpg", {"exif": exif(600.0)}, 600),
        ("a.jpg", {"exif": exif(236.22, unit=3)}, 600),
        ("a.jpg", {"exif": exif(600.0, unit=1)}, None),
        ("a.jpg", {"exif": exif(600.0), "dpi": (72, 72)}, None),
        ("a.jpg", {"dpi": (100, 100)}, None),  # what SegRoot's files say, and is wrong
        ("a.jpg", {"dpi": (72, 72)}, None),
        ("a.jpg", {"dpi": (96, 96)}, None),
        ("a.jpg", {"dpi": (300, 150)}, None),
        ("a.jpg", {"dpi": (1, 1)}, None),
        ("a.tif", {"dpi": (20_000, 20_000)}, None),
        ("a.png", {}, None),
    ],
)
def test_resolution_from_metadata(name, options, dpi, tmp_path):
    found, said = resolution(save(tmp_path / name, **options))
    assert found == (None if dpi is None else pytest.approx(dpi, abs=0.11))
    assert type(found) in (float, type(None)), "a rational is no number to divide by"
    uneven = " (metadata say 300 x 150 dpi: pixels that are no squares are measured as if they were)"
    none = f"no resolution{uneven if options.get('dpi') == (300, 150) else ''}"
    assert said == (f"{found:g} dpi from the metadata" if dpi else none)


def test_a_cameras_resolution_is_of_nothing(tmp_path):
    photo = exif(300.0)
    photo.get_ifd(0x8769)[0x829A] = 0.01  # seconds of exposure
    assert resolution(save(tmp_path / "a.jpg", exif=photo)) == (None, "no resolution")


def test_name_against_metadata(tmp_path):
    path = save(tmp_path / "a_600dpi.png", dpi=(300, 300))
    assert resolution(path) == (600, "600 dpi from the name, against 300 in the metadata")
    assert resolution(save(tmp_path / "a_300dpi.png", dpi=(300, 300)))[1] == "300 dpi from the name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_1dpi.png", r"a_1dpi\.png: the resolution in its name is 1: give a number, 50 or more and at most 10000"),
        ("a_99999dpi.png", "at most 10000"),
        ("300dpi_600dpi.png", r"is named 300 and 600 dpi: give dpi \(--dpi\), or rename it"),
    ],
)
def test_impossible_names_are_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        resolution(save(tmp_path / name))


@pytest.mark.parametrize(
    ("dpi", "hint"),
    [
        (0.0847, "If it is the edge of a pixel in mm, that is 300 dpi"),
        (42.3, "If it is the edge of a pixel in µm, that is 600 dpi"),
        (11811, "If it is pixels per metre, that is 300 dpi"),
        (0, "dpi is 0: give a number, 50 or more"),
        (-300, "50 or more"),
        (float("nan"), "dpi is nan"),
        (float("inf"), "dpi is inf"),
        ("300", "dpi is '300'"),
        (True, "dpi is True"),
        (1e300, "at most 10000"),
    ],
)
def test_impossible_resolutions_are_refused_with_the_likely_cause(dpi, hint):
    with pytest.raises(ValueError, match=hint):
        checked_dpi(dpi)


@given(st.floats() | st.integers(-10, 20_000))
def test_a_resolution_is_in_range_or_refused(dpi):
    low, high = DPI_RANGE
    if low <= dpi <= high:
        assert checked_dpi(dpi) == dpi
    else:
        with pytest.raises(ValueError, match="dpi is"):
            checked_dpi(dpi)


def test_a_png_with_a_changed_byte_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png")
