"""Masks: in every coding the right pixels are root and it is said, or one sentence asks what is root."""

import io
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rootsam_lib.data.datasets import read_segroot, without_frame
from rootsam_lib.data.folders import read_folder
from rootsam_lib.data.masks import find_coding, read_mask
from rootsam_lib.data.scans import Scan

MASK = np.zeros((120, 160), bool)
MASK[20:24, 10:140] = True
MASK[60:69, 20:150] = True
MASK[80:118, 50:53] = True
GREY = MASK.astype(np.uint8) * 255
NONE, FULL = np.zeros_like(GREY), np.full_like(GREY, 255)
SHARE = f"{100 * MASK.mean():.2g}"


def rgb(red, green, blue, *alpha):
    return np.stack([red, green, blue, *alpha], axis=-1).astype(np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options) if isinstance(pixels, np.ndarray) else pixels.save(path, **options)
    return path


def numbered(shape, count, step=1, dtype=np.uint16):
    """`count` lines, each with a number of its own."""
    pixels = np.zeros(shape, dtype)
    for number in range(count):
        pixels[2 + 3 * number, 5 : shape[1] - 5 - number] = (number + 1) * step
    return pixels


INDEXED = Image.fromarray(MASK.astype(np.uint8))
INDEXED.putpalette([0, 0, 0, 128, 0, 0])
SOFT = cv2.GaussianBlur(GREY, (0, 0), 0.7)

LOSSLESS = [
    pytest.param(GREY, "coded 0/255", id="0/255"),
    pytest.param(MASK.astype(np.uint8), "coded 0/1", id="0/1"),
    pytest.param(MASK.astype(np.uint8) * 100, "coded 0/100", id="0/100"),
    pytest.param(MASK.astype(np.uint8) * 127, "coded 0/127", id="0/127"),
    pytest.param(MASK.astype(np.uint8) + 1, "coded 1/2", id="1/2"),
    pytest.param(MASK.astype(np.uint16) * 65535, "coded 0/65535", id="16 bits"),
    pytest.param(MASK.astype(np.uint16), "coded 0/1", id="16 bits 0/1"),
    pytest.param(MASK.astype(np.int32) * 70_000_000, "coded 0/70000000", id="32 bits"),
    pytest.param(MASK, "coded 0/255", id="1 bit"),
    pytest.param(rgb(GREY, GREY, GREY), "coded 0/255", id="RGB"),
    pytest.param(rgb(GREY, GREY, GREY, FULL), "coded 0/255", id="RGBA, alpha 255"),
    pytest.param(rgb(MASK, MASK, MASK, FULL), "coded 0/1", id="RGBA 0/1, alpha 255"),
    pytest.param(rgb(FULL, FULL, FULL, GREY), "coded 0/255", id="white on transparent"),
    pytest.param(np.stack([GREY, FULL], axis=-1), "coded 0/255", id="grey, alpha 255"),
    pytest.param(rgb(GREY, NONE, NONE), "painted red", id="red"),
    pytest.param(rgb(FULL, 255 - GREY, 255 - GREY), "painted red", id="red on white"),
    pytest.param(rgb(GREY, np.where(MASK, 0, GREY[::-1]), NONE, np.where(MASK | MASK[::-1], 180, 0)),
                 r"painted red \(root\) and green \(soil\)", id="RootPainter"),
    pytest.param(INDEXED, "painted red", id="palette"),
    pytest.param(SOFT, "coded 0/255 (grey edges)", id="grey edges"),
]  # fmt: skip


@pytest.mark.parametrize(("pixels", "how"), LOSSLESS)
def test_lossless_masks_of_every_kind_read_the_same_and_it_is_said(pixels, how, tmp_path):
    path = write(tmp_path / ("m.tif" if getattr(pixels, "dtype", None) == np.int32 else "m.png"), pixels)
    coding, said = find_coding([path])
    assert pytest.approx(MASK.mean(), rel=0.2) == read_mask(path).mean()
    mask = read_mask(path, coding)
    expected = SOFT > 127 if pixels is SOFT else MASK
    assert mask.dtype == bool and np.array_equal(mask, expected)
    assert np.array_equal(read_mask(path), mask)
    share = f"{100 * expected.mean():.2g}"
    assert said.startswith("masks " + how.replace("\\", "")) and said.endswith(f"root share {share} % ({path})")


def test_floating_point_masks(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", MASK.astype(np.float32))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), MASK)
    tifffile.imwrite(tmp_path / "soft.tif", (SOFT / 255).astype(np.float32))
    np.testing.assert_array_equal(read_mask(tmp_path / "soft.tif"), SOFT > 127)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((9, 9), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"nan\.tif holds pixels that are no number"):
        read_mask(tmp_path / "nan.tif")


def test_16_bit_colours_keep_their_lower_half(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.dstack([MASK.astype(np.uint16)] * 3))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), MASK)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("root", [50, 100, 127, 200, 255])
@pytest.mark.parametrize("colours", [False, True], ids=["grey", "rgb"])
def test_jpeg_masks_are_read_by_their_own_root_value(root, quality, colours, tmp_path):
    pixels = MASK.astype(np.uint8) * root
    path = write(tmp_path / "m.jpg", rgb(pixels, pixels, pixels) if colours else pixels, quality=quality)
    _, said = find_coding([path])
    np.testing.assert_array_equal(read_mask(path), MASK)
    found = int(said.split("0/")[1].split(" ")[0])
    assert abs(found - root) <= 3 and said.endswith(f"root share {SHARE} % ({path})")


def test_jpeg_masks_of_0_and_1(tmp_path):
    for quality in (75, 95, 100):
        path = write(tmp_path / f"{quality}.jpg", MASK.astype(np.uint8), quality=quality)
        try:
            assert (read_mask(path) != MASK).sum() < 20 and find_coding([path])[0] == "0/1"
        except ValueError as refused:
            assert "which JPEG may have blurred (export PNG)" in str(refused)
    with pytest.warns(UserWarning, match=r"only 0\.00% of the pixels are root\. A JPEG of small values such as 0/1"):
        read_mask(write(tmp_path / "c.jpg", MASK.astype(np.uint8), quality=30))
    with pytest.warns(
        UserWarning, match=r"only 0\.00% of the pixels are root\. If something is drawn there, give another"
    ):
        read_mask(write(tmp_path / "c.png", MASK.astype(np.uint8) * 0))


def test_jpeg_of_0_and_255_is_thresholded_above_127_exactly(tmp_path):
    for quality in (10, 30, 60, 90):
        path = write(tmp_path / "m.jpg", GREY, quality=quality)
        assert len(np.unique(np.asarray(Image.open(path)))) > 2  # compression did blur it
        np.testing.assert_array_equal(read_mask(path), np.asarray(Image.open(path)) > 127)


@given(quality=st.integers(5, 100), seed=st.integers(0, 99), root=st.sampled_from([90, 127, 160, 255]))
@settings(max_examples=40, deadline=None)
def test_any_jpeg_mask_is_right_or_refused(quality, seed, root):
    rng = np.random.default_rng(seed)
    mask = np.zeros((96, 128), bool)
    for _ in range(rng.integers(2, 12)):
        row, column = rng.integers(0, 90), rng.integers(0, 60)
        mask[row : row + rng.integers(2, 9), column : column + rng.integers(10, 60)] = True
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(root)).save(file, "JPEG", quality=quality)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(place) / "m.jpg"
        path.write_bytes(file.getvalue())
        try:
            assert (read_mask(path) != mask).mean() < 0.01
        except ValueError as refused:
            assert quality < 40 and "give mask_coding" in str(refused)


@pytest.mark.parametrize("quality", [20, 50, 80, 97])
def test_a_jpeg_mask_saved_again_as_png(quality, tmp_path):
    blurred = np.asarray(Image.open(write(tmp_path / "m.jpg", GREY, quality=quality)))
    coding, said = find_coding([write(tmp_path / "m.png", blurred)])
    assert coding == "0/255" and "(grey edges)" in said
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), blurred > 127)


@pytest.mark.parametrize("size", [(120, 90), (240, 180), (320, 240), (400, 300)])
@pytest.mark.parametrize("how", [Image.BOX, Image.BILINEAR, Image.LANCZOS], ids=["box", "bilinear", "lanczos"])
def test_a_resized_mask(size, how, tmp_path):
    resized = Image.fromarray(GREY).resize(size, how)
    coding, _ = find_coding([write(tmp_path / "m.png", resized)])
    assert coding == "0/255"
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.asarray(resized) > 127)


@pytest.mark.parametrize(("count", "step", "dtype"), [(38, 1, np.uint8), (60, 1, np.uint16), (12, 20, np.uint8)])
@pytest.mark.parametrize("touching", [False, True])
def test_numbers_of_single_roots_ask_for_labels_and_are_all_root(count, step, dtype, touching, tmp_path):
    pixels = numbered((200, 220), count, step, dtype)
    if touching:
        pixels[2 : 3 * count, 5] = 1
    path = write(tmp_path / "m.png", pixels)
    with pytest.raises(ValueError, match=r"holds the values 0, .*give mask_coding .*labels \(all but 0\)"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, "labels"), pixels > 0)


@pytest.mark.parametrize("top", [200, 255])
def test_numbers_beside_a_bright_one_are_not_lost(top, tmp_path):
    pixels = numbered((200, 220), 6, 1, np.uint8)
    pixels[100:120] = top
    with pytest.raises(ValueError, match="holds the values 0, 1, 2, 3, 4, 5, 6"):
        read_mask(write(tmp_path / "m.png", pixels))


def photograph():
    return np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)


THIRD = GREY.copy()
THIRD[100:] = 127


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("m.png", numbered((60, 80), 2), r"holds the values 0, 1, 2 \("),
        ("m.png", numbered((60, 80), 5), r"holds the values 0, 1, 2, 3, 4, 5 \("),
        ("m.png", THIRD, r"holds the values 0, 127, 255 \("),
        ("m.jpg", THIRD, "holds the values 0, 1, .*JPEG may have blurred"),
        ("m.png", photograph(), "holds the values 0, 1, 2, 3, 4, 5, 6, …"),
        ("m.jpg", photograph(), "holds the values 0, 1, .*JPEG may have blurred"),
        ("m.png", np.maximum(photograph(), 40) * np.uint8(1), "holds the values 40, 41"),
        ("m.png", np.clip(photograph().astype(int) * 2, 0, 255).astype(np.uint8), "holds the values 0, 2, 4"),
        ("m.png", rgb(NONE, GREY, NONE), "is painted green; which"),
        ("m.png", rgb(NONE, GREY, NONE, GREY), "is painted green; which"),
        ("m.jpg", rgb(NONE, GREY, NONE), "is painted green and other colours; which"),
        ("m.png", rgb(GREY, GREY[::-1], NONE), "painted red and green and other colours"),
        ("m.png", rgb(GREY, NONE, GREY[::-1]), "painted red and blue"),
        ("m.png", rgb(NONE, NONE, GREY), "is painted blue; which"),
        ("m.png", rgb(THIRD // 2, NONE, NONE), "painted red and other colours"),
    ],
)
def test_ambiguous_masks_ask_for_the_coding(name, pixels, message, tmp_path):
    path = write(tmp_path / name, pixels)
    with pytest.raises(ValueError, match=message) as refused:
        read_mask(path)
    assert "give mask_coding (--mask-coding), such as 0/255" in str(refused.value) and str(path) in str(refused.value)


def test_a_mask_that_a_given_coding_leaves_empty_is_named(tmp_path):
    paths = [write(tmp_path / f"{n}.png", GREY) for n in range(4)]
    write(paths[2], GREY // 255)
    with pytest.warns(
        UserWarning, match=r"2\.png holds no root \(1 of 4 .*what is drawn there is no root by 0/255, save"
    ):
        find_coding(paths, coding="0/255")
    with pytest.raises(ValueError, match=r"2\.png holds the values 0, 1, 255 \(all 4 masks together\)"):
        find_coding(paths)
    write(paths[2], NONE)
    with pytest.warns(UserWarning, match=r"2\.png holds no root \(1 of 4 masks hold none\): if roots are drawn there"):
        find_coding(paths)
    paths[2] = write(
        tmp_path / "2.jpg", NONE + np.indices(NONE.shape).sum(0).astype(np.uint8) % 3
    )  # soil, as JPEG has it
    with pytest.warns(UserWarning, match=r"2\.jpg holds no root \(1 of 4 masks hold none\): if roots are drawn there"):
        find_coding(paths, coding="0/255")


def test_values_beyond_a_given_coding_are_said(tmp_path):
    classes = GREY // 255
    classes[100:, 100:] = 2
    path = write(tmp_path / "c.png", classes)
    with pytest.warns(UserWarning, match=r"c\.png holds 2, neither of 0/1, .*\(1 of 1 masks hold such\): if that is"):
        find_coding([path], coding="0/1")


@pytest.mark.parametrize("alpha", [NONE, GREY // 255 * 100], ids=["hidden", "faint"])
def test_a_drawing_that_is_transparent_all_over_is_refused(alpha, tmp_path):
    path = write(tmp_path / "t.png", np.dstack([GREY, GREY, GREY, alpha]))
    with pytest.raises(
        ValueError, match=r"t\.png is drawn, but transparent all over: save the mask as black and white"
    ):
        read_mask(path, "0/255")


def test_the_mask_that_differs_is_named(tmp_path):
    red, blue = rgb(GREY, NONE, NONE), rgb(NONE, NONE, GREY)
    paths = [write(tmp_path / f"{n}.png", red) for n in range(4)]
    with pytest.raises(ValueError, match=r"3\.png is painted blue as the others are not; which"):
        find_coding([*paths[:3], write(tmp_path / "3.png", blue)])
    with pytest.raises(ValueError, match=r"3\.png is grey, but .*0\.png is painted in colours"):
        find_coding([*paths[:3], write(tmp_path / "3.png", GREY)])


def test_red_on_white_is_red_as_jpeg_too(tmp_path):
    path = write(tmp_path / "r.jpg", rgb(FULL, 255 - GREY, 255 - GREY))
    assert find_coding([path])[0] == "red" and abs(read_mask(path).mean() - MASK.mean()) < 0.002


def test_an_image_that_is_its_mask_or_looks_like_one(tmp_path):
    write(tmp_path / "a.png", GREY)
    with pytest.warns(UserWarning, match=r"a\.png holds two colours only: if it is a mask, call it X-mask"):
        read_folder(tmp_path, need_masks=False)
    write(tmp_path / "a-mask.png", GREY)
    with pytest.raises(ValueError, match=r"a\.png holds what its mask holds: put the photograph in its place"):
        read_folder(tmp_path)


def test_noise_of_jpeg_is_said_where_all_but_0_is_root(tmp_path):
    png, jpg = write(tmp_path / "t.png", THIRD), write(tmp_path / "t.jpg", THIRD)
    with pytest.warns(UserWarning, match=r"t\.jpg is a JPEG, whose noise .* \(1 of 2 masks\): export PNG, or give"):
        find_coding([png, jpg], coding="labels")


def test_a_given_coding_is_obeyed(tmp_path):
    third = write(tmp_path / "t.png", THIRD)
    assert np.array_equal(read_mask(third, "0/255"), THIRD > 127) and np.array_equal(
        read_mask(third, "labels"), THIRD > 0
    )
    assert np.array_equal(read_mask(third, "255/0"), THIRD < 127.5)
    green = write(tmp_path / "g.png", rgb(GREY[::-1], GREY, NONE, FULL))
    only = MASK & ~MASK[::-1]
    assert np.array_equal(read_mask(green, "green"), only) and np.array_equal(read_mask(green, "red"), only[::-1])
    for wrong in ("", "root", "1", "255/255", "-1/2", 255):
        with pytest.raises(ValueError, match=r"mask_coding is .*give soil/root, such as 0/255"):
            read_mask(third, wrong)


def test_what_is_drawn_in_transparency_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"m\.png is black on transparent ground: save the mask as black and white"):
        read_mask(write(tmp_path / "m.png", rgb(NONE, NONE, NONE, GREY)))


def test_masks_without_roots_are_empty_and_it_is_said(tmp_path):
    opaque = rgb(NONE, NONE, NONE, FULL)
    for name, pixels in (("a.png", NONE), ("b.png", opaque)):
        with pytest.warns(UserWarning, match=rf"{name}: only 0\.00% of the pixels are root"):
            assert not read_mask(write(tmp_path / name, pixels)).any()


def test_full_and_inverted_masks_are_warned_about(tmp_path):
    inverted = write(tmp_path / "inv.png", 255 - GREY)
    message = r"inv\.png: 91% of the pixels are root .*; if the mask is inverted, give mask_coding 255/0, or"
    with pytest.warns(UserWarning, match=message):
        read_mask(inverted)
    np.testing.assert_array_equal(read_mask(inverted, "255/0"), MASK)
    with pytest.warns(UserWarning, match="100% of the pixels are root"):
        assert read_mask(write(tmp_path / "full.png", FULL)).all()


# ---------------------------------------------------------------- one coding for a folder


def folder(path, *masks, image=None):
    for number, pixels in enumerate(masks):
        write(path / f"T{number:03d}.png", np.zeros((*MASK.shape, 3), np.uint8) if image is None else image)
        write(path / f"T{number:03d}-mask.png", pixels)
    return path


def test_a_folder_s_masks_have_one_coding_and_it_is_said_once(tmp_path):
    said = []
    scans = read_folder(folder(tmp_path / "a", MASK.astype(np.uint8), NONE, MASK.astype(np.uint8)), say=said.append)
    assert [int(scan.mask.sum()) for scan in scans] == [MASK.sum(), 0, MASK.sum()]
    assert said[-1] == f"masks coded 0/1, root share {200 / 3 * MASK.mean():.2g} % (3 masks)"
    assert said[0].startswith("resolution: no resolution (3 images) (give dpi") and len(said) == 2


def test_a_value_means_the_same_in_every_mask_of_a_folder(tmp_path):
    """Alone, a mask of 0 and 1 would be read as root 1; beside one of 0, 1 and 2 that is open."""
    place = folder(tmp_path / "classes", MASK.astype(np.uint8), MASK.astype(np.uint8) * 2)
    with pytest.raises(ValueError, match=r"holds the values 0, 1, 2 \(all 2 masks together\)"):
        read_folder(place, say=print)
    assert read_folder(place, mask_coding="1/2")[0].mask.sum() == 0
    with pytest.raises(ValueError, match=r"holds the values 0, 1, 255 \(all 2 masks together\)"):
        read_folder(folder(tmp_path / "files", MASK.astype(np.uint8), GREY))
    red_alone = folder(tmp_path / "painted", rgb(GREY, NONE, NONE, GREY), rgb(NONE, GREY, NONE, GREY))
    assert [scan.mask.sum() for scan in read_folder(red_alone)] == [MASK.sum(), 0]
    with pytest.raises(ValueError, match=r"T001-mask\.png is grey, but .*T000-mask\.png is painted in colours"):
        read_folder(folder(tmp_path / "mixed", rgb(GREY, NONE, NONE), GREY))
    with pytest.raises(ValueError, match=r"holds the values 0, 1, .*\(all 2 masks together\)"):
        place = folder(tmp_path / "two", MASK.astype(np.uint8))
        write(place / "T009.png", np.zeros((*MASK.shape, 3), np.uint8))
        write(place / "T009-mask.jpg", MASK.astype(np.uint8) * 100, quality=70)
        read_folder(place)


def test_nearly_empty_and_nearly_full_folders_are_warned_about(tmp_path):
    dot = NONE.copy()
    dot[5, 5] = 255
    with pytest.warns(UserWarning, match=r"3 masks: only 0\.00% of the pixels are root"):
        read_folder(folder(tmp_path / "empty", NONE, dot, NONE))
    with pytest.warns(UserWarning, match=r"T000-mask\.png: 91% .*\(2 of 2 masks hold more than half\).*255/0"):
        read_folder(folder(tmp_path / "full", 255 - GREY, 255 - GREY))


# ---------------------------------------------------------------- as the image lies


def turned(path, image, mask, orientation, of_mask=1):
    for name, pixels, tag in (("a.png", image, orientation), ("a-mask.png", mask, of_mask)):
        exif = Image.Exif()
        exif[0x0112] = tag
        write(path / name, pixels, exif=exif)
    return path


IMAGE = rgb(GREY, GREY // 2, np.indices(GREY.shape).sum(0).astype(np.uint8) // 2)


def test_a_mask_lies_as_its_image(tmp_path):
    scan = read_folder(turned(tmp_path / "both", IMAGE, GREY, 6, 6))[0]
    np.testing.assert_array_equal(scan.mask, scan.image[..., 0] > 127)
    scan = read_folder(turned(tmp_path / "upright", IMAGE, np.rot90(GREY, -1), 6))[0]
    np.testing.assert_array_equal(scan.mask, scan.image[..., 0] > 127)
    with pytest.raises(ValueError, match=r"160 × 120 pixels, but its image a\.png is 120 × 160 \(turned by its EXIF"):
        read_folder(turned(tmp_path / "before", IMAGE, GREY, 6))


@pytest.mark.parametrize(("orientation", "of_mask", "square"), [(3, 1, 0), (2, 1, 0), (6, 1, 1), (1, 3, 0), (3, 2, 0)])
def test_a_mask_that_may_lie_either_way_is_refused(orientation, of_mask, square, tmp_path):
    cut = (slice(0, 120), slice(0, 120)) if square else ...
    place = turned(tmp_path / "a", IMAGE[cut], GREY[cut].copy(), orientation, of_mask)
    message = rf"EXIF orientation {orientation}, but its mask a-mask\.png {of_mask}, and both ways of laying it fit"
    with pytest.raises(ValueError, match=message):
        read_folder(place)


# ---------------------------------------------------------------- SegRoot


def test_segroot_masks_read_as_before(segroot):
    """Above 127, for they are JPEG; and the coding that a folder's masks are found to have says the same."""
    paths = sorted(segroot.rglob("*-mask.jpg"))[:4]
    coding, said = find_coding(paths)
    assert coding == "0/255" and said.startswith("masks coded 0/255 (JPEG), root share")
    for path in paths:
        np.testing.assert_array_equal(read_mask(path, coding), np.asarray(Image.open(path)).max(axis=2) > 127)
    (scan,) = read_segroot("valid", segroot, limit=1)
    (path,) = segroot.rglob(f"{scan.name}-mask.jpg")
    drawn = np.asarray(Image.open(path)).max(axis=2) > 127
    np.testing.assert_array_equal(scan.mask[:-2], drawn[:-2])


def test_the_white_frame_below_a_scan_is_no_root(segroot):
    """Two rows of white dashes, which six of the 13 masks call root."""
    scans = read_segroot("valid", segroot)
    drawn = [np.asarray(Image.open(next(segroot.rglob(f"{s.name}-mask.jpg")))).max(axis=2) > 127 for s in scans]
    assert sum(mask[-2:].mean() > 0.15 for mask in drawn) == 6 and not any(scan.mask[-2:].any() for scan in scans)
    assert any(scan.mask[-3].any() for scan in scans), "a root that ends at the frame is kept"
    dark = Scan(np.full((8, 8, 3), 60, np.uint8), np.ones((8, 8), bool), "T001", "T001")
    assert without_frame(dark).mask.all()
    white = Scan(np.full((8, 8, 3), 250, np.uint8), np.ones((8, 8), bool), "T001", "T001")
    assert without_frame(white).mask.sum() == 32


def test_laterals_of_another_value_are_asked_about_also_where_they_touch(tmp_path):
    mask = np.zeros((200, 200), np.uint8)
    mask[90:110], mask[110:190, 50:55], mask[110:190, 150:155] = 255, 127, 127
    Image.fromarray(mask).save(tmp_path / "classes.png")
    with pytest.raises(ValueError, match="holds the values 0, 127, 255"):
        find_coding([tmp_path / "classes.png"])
    edges = np.zeros((200, 200), np.uint8)  # a straight root between two rows of grey
    edges[100:103], edges[99], edges[103] = 255, 127, 127
    Image.fromarray(edges).save(tmp_path / "edges.png")
    assert find_coding([tmp_path / "edges.png"])[0] == "0/255"


def test_a_soft_brush_counts_up_to_the_middle_of_its_edge(tmp_path):
    painted = np.full((40, 40, 4), 255, np.uint8)
    painted[..., 3] = 0
    painted[18:22, :, 3], painted[16:18, :, 3], painted[22:24, :, 3] = 255, 60, 60
    Image.fromarray(painted).save(tmp_path / "brush.png")
    assert read_mask(tmp_path / "brush.png").sum() == 4 * 40
    painted[..., :3] = np.where(painted[..., 3:] > 127, 0, 255)  # black paint, and white where nothing shows
    Image.fromarray(painted).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="is black on transparent ground"):
        read_mask(tmp_path / "black.png")
