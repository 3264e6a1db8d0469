"""Sets of scans: what is found, said and refused, names and groups, splits, tiles, downloads (pixels: test_images)."""

import hashlib
import os
import warnings
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rootsam_lib import CHECKOUT
from rootsam_lib.data import datasets
from rootsam_lib.data.datasets import load_parts, load_scans, read_segroot, segroot_index
from rootsam_lib.data.folders import find_pairs, read_folder
from rootsam_lib.data.images import read_image
from rootsam_lib.data.scans import (
    Scan,
    check_dates,
    check_leaks,
    describe_groups,
    grouped_split,
    leak_report,
    parse_date,
    parse_tube,
    tile,
)
from rootsam_lib.results import downloader

SEGROOT_NAME = "Untitled_T002_L004_11.04.17_084840_004_Untitled"

IMAGE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
MASK = np.zeros((24, 32), bool)
MASK[4:10, 3:20] = True
GREY = MASK.astype(np.uint8) * 255


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "tube", "date"),
    [
        (SEGROOT_NAME, "T002", "2017-04-11"),
        ("Peanut_T001_L001_2017.06.08_082034_EED_DPI120", "T001", "2017-06-08"),
        ("GT_2016LATERALPEANUT_T064_L026_2016.06.30_153740_006_BAZ", "T064", "2016-06-30"),
        ("DOE.S300_T312_L2_09.08.17_114706_1_FRMI_01", "T312", "2017-08-09"),
        ("maize-tube7-2024-05-31", "T007", "2024-05-31"),
        ("plantA_t1_2024", "", ""),  # a time point, not a tube
        ("CATT12_99.99.99", "", ""),
        ("T2", "T002", ""),
    ],
)
def test_tube_and_date_are_read_from_the_name(name, tube, date):
    assert (parse_tube(name), parse_date(name)) == (tube, date)


def test_scan_refuses_wrong_arrays():
    with pytest.raises(ValueError, match=r"s: the image must be \(H, W, 3\) uint8"):
        Scan(IMAGE / 255, MASK, "s", "T1")
    with pytest.raises(ValueError, match=r"s: the mask must be \(24, 32\) bool"):
        Scan(IMAGE, GREY, "s", "T1")


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("X.jpg", "X-mask.jpg"),
        ("X.png", "GT_X.png"),
        ("X.JPG", "X_mask.PNG"),
        ("X.tif", "mask_X.png"),
        ("images/X.jpg", "masks/X.png"),
        ("Images/X.jpg", "GT/GT_X.png"),
        ("Images/2016_T064.jpg", "GT/GT2016_T064.png"),
        ("Images/A_FRMI_01.png", "GT/A_FRMI_BW2_01.png"),
        ("images/X.jpg", "images/X-mask.jpg"),
        ("peanut/images/X.jpg", "peanut/masks/X_mask.png"),
        ("train/images/Peanut_DPI120/X.jpg", "train/masks_pixel_gt/Peanut_DPI120/GT_X.png"),
        ("images/train/X.jpg", "masks/train/X.png"),
    ],
)
def test_masks_are_found_under_every_scheme(image, mask, tmp_path):
    write(tmp_path / image, IMAGE)
    write(tmp_path / mask, GREY)
    write(tmp_path / ".ipynb_checkpoints" / "X-checkpoint.png", IMAGE)
    (tmp_path / "._X.jpg").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "notes.txt").write_text("not an image")
    (scan,) = read_folder(tmp_path)
    assert scan.name == Path(image).stem and scan.image.shape == (24, 32, 3)
    assert (scan.mask != MASK).mean() < 0.01
    assert scan.mm_per_px == (pytest.approx(25.4 / 120) if "DPI120" in image else None)
    assert read_folder(tmp_path, dpi=300)[0].mm_per_px == pytest.approx(25.4 / 300)


def test_images_of_one_name_in_two_folders_keep_two_names(tmp_path):
    for crop in ("maize", "peanut"):
        write(tmp_path / crop / "images" / "T001_a.png", IMAGE)
        write(tmp_path / crop / "masks" / "T001_a.png", GREY)
    assert [scan.name for scan in read_folder(tmp_path)] == ["maize-T001_a", "peanut-T001_a"]


def pairs(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / f"{name}.png", IMAGE)
        write(folder / f"{name}-mask.png", GREY)


def test_folder_without_a_split_gets_one_by_tube(tmp_path):
    pairs(tmp_path, *(f"maize_T{tube:03d}_L{level:03d}" for tube in range(7) for level in range(3)))
    parts = {split: read_folder(tmp_path, split, seed=3) for split in ("train", "valid", "test")}
    assert leak_report(parts) == {}
    assert {split: len(scans) for split, scans in parts.items()} == {"train": 15, "valid": 3, "test": 3}
    again = read_folder(tmp_path, "test", seed=3)
    assert [scan.name for scan in again] == [scan.name for scan in parts["test"]]
    others = {read_folder(tmp_path, "test", seed=seed)[0].tube for seed in range(6)}
    assert len(others) > 1
    assert len(read_folder(tmp_path, "all")) == 21
    assert len({scan.tube for scan in read_folder(tmp_path, "all", limit=5)}) == 5  # spread, not the first tubes


def test_folder_with_a_split_keeps_it_and_reports_a_leak(tmp_path):
    pairs(tmp_path / "train", "a_T001_x", "b_T002_x")
    pairs(tmp_path / "val", "c_T001_y")
    with pytest.warns(UserWarning, match=r"more than one part of the split: T001"):
        assert [scan.name for scan in read_folder(tmp_path, "valid")] == ["c_T001_y"]
    with pytest.raises(ValueError, match="has a folder for train, valid, but none for test"):
        read_folder(tmp_path, "test")
    assert len(read_folder(tmp_path, "all")) == 3
    (tmp_path / "train").rename(tmp_path / "training")
    assert len(read_folder(tmp_path, "valid")) == 1 and len(read_folder(tmp_path, "train")) == 2
    pairs(tmp_path / "more", "d_T003_z")
    with pytest.warns(UserWarning, match=r"1 images lie in none of these parts and are left out \(first: d_T003_z\)"):
        assert len(read_folder(tmp_path, "train")) == 2


def test_names_without_tubes_are_their_own_groups(tmp_path):
    pairs(tmp_path, "a", "b", "c")
    with pytest.warns(UserWarning, match="so the split is by image"):
        (scan,) = read_folder(tmp_path, "test")
    assert scan.tube == scan.name


def test_images_to_segment_need_no_masks(tmp_path):
    pairs(tmp_path, "a")
    write(tmp_path / "b.png", IMAGE)
    assert [scan.mask is None for scan in read_folder(tmp_path, need_masks=False)] == [False, True]
    assert len(load_scans("folder", "all", tmp_path, need_masks=False)) == 2


def break_mask_missing(folder):
    write(folder / "b.png", IMAGE)


def break_mask_size(folder):
    write(folder / "a-mask.png", GREY[:20])


def break_image(folder):
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])


def break_not_an_image(folder):
    (folder / "a-mask.png").write_text("<html>404</html>")


def break_two_images(folder):
    write(folder / "a.jpg", IMAGE)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_mask_missing, r"b\.png has no mask \(1 of 2 have none\); names tried: X-mask, X_mask, GT_X"),
        (break_mask_size, r"a-mask\.png is 32 × 20 pixels, but its image a\.png is 32 × 24; export"),
        (break_image, r"a\.png cannot be read as an image"),
        (break_not_an_image, r"a-mask\.png cannot be read as an image"),
        (break_two_images, r"a\.jpg and .*a\.png are two images of one name; keep one"),
    ],
)
def test_broken_folders_are_refused_by_the_files_name(harm, message, tmp_path):
    pairs(tmp_path, "a")
    harm(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ROOTSAM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give a folder of images"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no images"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="needs data_dir"):
        load_scans("folder", "all")
    write(tmp_path / "Switchgrass_noMask" / "a.png", IMAGE)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        read_folder(tmp_path)
    pairs(tmp_path, "x_T001", "y_T002")
    with pytest.raises(ValueError, match="2 scans come from 2 tubes, too few for 3 parts"):
        read_folder(tmp_path, "train")


def test_masks_without_an_image_are_warned_about(tmp_path):
    pairs(tmp_path, "a")
    write(tmp_path / "B-mask.png", GREY)
    with pytest.warns(UserWarning, match=r"1 masks belong to no image \(first: B-mask\.png\)"):
        read_folder(tmp_path)


def test_a_mask_of_another_name_is_warned_about_where_it_would_be_taken_for_an_image(tmp_path):
    write(tmp_path / "a.png", IMAGE)
    write(tmp_path / "a-mask-final.png", GREY)
    with pytest.warns(UserWarning, match=r"1 images are called like masks \(first: a-mask-final\.png\): if they are"):
        read_folder(tmp_path, need_masks=False)
    for name in ("a1mask", "a2 (mask)"):
        write(tmp_path / f"{name}.png", GREY)
    with pytest.warns(UserWarning, match=r"3 images are called like masks"):
        read_folder(tmp_path, need_masks=False)


# ---------------------------------------------------------------- what a folder says


def test_names_of_one_letter_in_two_encodings_belong_together(tmp_path):
    write(tmp_path / "\u00e9_T001.png", IMAGE)
    write(tmp_path / "e\u0301_T001-mask.png", GREY)
    assert [scan.name for scan in read_folder(tmp_path)] == ["\u00e9_T001"]


def test_a_time_of_day_is_no_date():
    names = [f"T001_L001_{day}_{time}" for day in ("11.04.17", "12.05.17") for time in ("08.48.40", "08.15.40")]
    assert check_dates(names) == f"dates are read as day.month.year: {names[0]} is of 2017-04-11"
    with pytest.raises(ValueError, match=r"05\.13\.17_08\.15\.40 holds a date that is not day\.month\.year"):
        check_dates([*names, "T001_L001_05.13.17_08.15.40"])


def test_resolution_of_a_folder_is_said(tmp_path):
    write(tmp_path / "a_300dpi.png", IMAGE)
    write(tmp_path / "b.png", IMAGE, dpi=(600, 600))
    write(tmp_path / "c_600dpi.png", IMAGE, dpi=(300, 300))
    write(tmp_path / "d.jpg", IMAGE)
    said = []
    scans = read_folder(tmp_path, need_masks=False, say=said.append)
    sizes = [scan.mm_per_px and round(25.4 / scan.mm_per_px) for scan in scans]
    assert sizes == [300, 600, 600, None]
    assert said == [
        "resolution: 300 dpi from the name (1 image); 600 dpi from the metadata (1 image); 600 dpi from the name, "
        "against 300 in the metadata (1 image); no resolution (1 image) (give dpi, --dpi on the command line, for "
        "millimetres: without it lengths are in pixels) (a model sees all of a folder at one scale: give each "
        "resolution a folder of its own)"
    ]
    said.clear()
    given = read_folder(tmp_path, need_masks=False, dpi=300, say=said.append)
    assert {scan.mm_per_px for scan in given} == {25.4 / 300}
    assert said == ["resolution: 300 dpi as given, against 600 dpi from the metadata (2 of the images say otherwise)"]
    with pytest.raises(ValueError, match=r"dpi is 0\.0847: .*edge of a pixel in mm, that is 300 dpi"):
        read_folder(tmp_path, need_masks=False, dpi=0.0847)
    write(tmp_path / "e_2dpi.png", IMAGE)
    with pytest.raises(ValueError, match=r"e_2dpi\.png: the resolution in its name is 2: give a number, 50 or more"):
        read_folder(tmp_path, need_masks=False)
    assert len(read_folder(tmp_path, need_masks=False, dpi=300)) == 5


def test_a_pipe_and_a_folder_with_an_image_s_name(tmp_path):
    pairs(tmp_path, "a")
    (tmp_path / "folder.png").mkdir()
    assert len(read_folder(tmp_path)) == 1
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"pipe\.png has no mask"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"pipe\.png is no regular file"):
        read_folder(tmp_path, need_masks=False)


def test_every_scan_has_a_name_of_its_own_that_can_be_written(tmp_path):
    pairs(tmp_path, "T001_a", os.fsdecode(b"caf\xe9"), "long" * 60)
    entries = find_pairs(tmp_path, need_masks=True)
    names = [entry.name for entry in entries]
    assert "caf%e9" in names and all(len(name.encode()) <= 200 for name in names) and len(set(names)) == 3
    assert all(entry.mask is not None for entry in entries)
    for scan in read_folder(tmp_path):
        (tmp_path / f"{scan.name}-overlay.txt").write_text(scan.name, encoding="utf-8")
    write(tmp_path / "more" / "a" / "b.png", IMAGE)
    write(tmp_path / "more" / "other" / "b.png", IMAGE)
    write(tmp_path / "more" / "a-b.png", IMAGE)
    message = r"a/b\.png and .*a-b\.png would both be called a-b: rename one"
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path / "more", need_masks=False)


def test_webp_is_read(tmp_path):
    write(tmp_path / "a.webp", IMAGE, lossless=True)
    write(tmp_path / "a-mask.webp", GREY, lossless=True)
    (scan,) = read_folder(tmp_path)
    np.testing.assert_array_equal(scan.image, IMAGE)
    np.testing.assert_array_equal(scan.mask, MASK)


def test_large_scans_are_named(tmp_path):
    pairs(tmp_path, "a")
    with pytest.raises(ValueError, match=r"a\.png has 0\.0 megapixels, and max_megapixels is 0\.0001: raise it"):
        read_folder(tmp_path, max_megapixels=1e-4)


# ---------------------------------------------------------------- groups


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


COPIES = {
    "as it is": lambda image: image,
    "JPEG": lambda image: encoded(image, 30),
    "a quarter of its size": lambda image: encoded(cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA), 80),
    "larger": lambda image: cv2.resize(image, (700, 700)),
    "brighter": lambda image: np.clip(1.5 * image + 10, 0, 255).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "turned, and smaller": lambda image: np.rot90(cv2.resize(image, (400, 300))),
    "turned mirror image": lambda image: np.rot90(image[::-1]),
    "moved by a pixel": lambda image: np.roll(image, 1, axis=1),
    "cropped": lambda image: image[2:-2, 2:-2],
}


@pytest.mark.parametrize("how", COPIES)
def test_a_picture_in_two_parts_is_found_whatever_was_done_to_it(how):
    first, second = (real_crop(number) for number in (0, 1))
    with pytest.raises(ValueError, match=r"two \(train\) and again \(test\) are nearly the same picture"):
        check_leaks({"train": [scan("one", first), scan("two", second)], "test": [scan("again", COPIES[how](second))]})


@pytest.mark.parametrize("light", (1, 0.15, 0.05))
def test_other_pictures_are_others_also_in_the_dark_under_one_label(light):
    """Two dates of one window, four quarters each, all under one white strip."""
    quarters = []
    for number in (0, 1):
        dark = (light * real_crop(number)).astype(np.uint8)
        dark[:30], dark[256:286] = 255, 255
        quarters += [dark[top : top + 256, left : left + 256 - number] for top in (0, 256) for left in (0, 256)]
    check_leaks({str(number): [scan(f"{number}", image)] for number, image in enumerate(quarters)})


def test_other_pictures_in_one_frame_are_others():
    """Drawn dishes at one place: their rims alone look alike."""
    rng, dishes = np.random.default_rng(1), []
    for _ in range(4):
        dish = np.full((600, 600, 3), 12, np.uint8)
        cv2.circle(dish, (300, 300), 240, (150, 150, 150), -1)
        cv2.circle(dish, (300, 300), 240, (220, 220, 220), 4)
        for _ in range(3):
            root = rng.uniform(150, 450, 2) + np.cumsum(rng.normal(0, 6, (40, 2)), 0)
            cv2.polylines(dish, [root.astype(np.int32)], False, (230, 230, 225), 3)
        dishes.append(np.clip(dish + rng.normal(0, 3, dish.shape), 0, 255).astype(np.uint8))
    check_leaks({str(number): [scan(f"{number}", image)] for number, image in enumerate(dishes)})
    with pytest.raises(ValueError, match="nearly the same picture"):
        check_leaks({"train": [scan("a", dishes[0])], "test": [scan("b", np.rot90(dishes[0]))]})


def test_pictures_without_anything_to_see_are_the_same_where_they_are_equal():
    black, grey = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 77, np.uint8)
    check_leaks({"train": [scan("black", black)], "test": [scan("grey", grey)]})
    check_leaks({"train": [], "test": []})
    with pytest.raises(ValueError, match="nearly the same picture"):
        check_leaks({"train": [scan("black", black)], "test": [scan("again", black.copy())]})


def real_crop(number: int) -> np.ndarray:
    """512 px of one window at the first or the second date."""
    return read_image(sorted((CHECKOUT / "data" / "real").glob("*.tiff"))[number])[:512, :512]


def scan(name: str, image: np.ndarray) -> Scan:
    return Scan(np.ascontiguousarray(image), None, name, name)


def test_a_part_without_any_root_is_refused_before_any_training(tmp_path):
    for part, mask in (("train/T1", GREY), ("train/T2", GREY), ("test/T3", np.zeros_like(GREY))):
        write(tmp_path / f"{part}.png", np.roll(IMAGE, int(part[-1]), axis=1))
        write(tmp_path / f"{part}-mask.png", mask)
    with pytest.raises(ValueError, match=r"no scan of the test part has a root \(1, first: T3\): add annotated scans"):
        load_parts("folder", "test", tmp_path, mask_coding="0/255", say=str)


def test_time_points_are_told_from_tubes(tmp_path):
    names = [f"plot{plot}_T{day}" for plot in range(6) for day in (1, 2, 3)]
    pairs(tmp_path, *names)
    with pytest.raises(ValueError, match=r"plot\d_T1 \(train\) and plot\d_T1 \((val|test)\) are nearly the same"):
        load_parts("folder", "test", tmp_path, group_by=r"plot\d+", say=lambda line: None)
    for number, name in enumerate(names):
        write(tmp_path / f"{name}.png", np.roll(IMAGE, number, axis=1))
    said = []
    with pytest.warns(UserWarning, match=r"plot0 occurs with T1, T2, T3: .*give group_by .* '\^\(plot\\d\+\)'"):
        read_folder(tmp_path, "train", say=said.append)
    assert said[0] == "18 scans in 3 groups by tube: T001 (6), T002 (6), T003 (6)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = {
            s: read_folder(tmp_path, s, group_by=r"^(plot\d+)", say=said.append) for s in ("train", "valid", "test")
        }
    assert said[3].startswith(r"18 scans in 6 groups by group_by '^(plot\\d+)': plot0 (3), plot1 (3)")
    assert leak_report(parts) == {} and sum(map(len, parts.values())) == 18
    assert {scan.tube for scans in parts.values() for scan in scans} == {f"plot{plot}" for plot in range(6)}
    both = load_parts("folder", "test", tmp_path, group_by=r"plot\d+", say=lambda line: None)
    assert leak_report(both) == {}


@pytest.mark.parametrize(
    ("names", "doubtful"),
    [
        (["Untitled_T001_L1", "Untitled_T002_L1", "Untitled_T003_L1"], False),  # as SegRoot's
        (["maize_T001", "peanut_T002", "oak_T003"], False),
        (["T001_a", "T002_a", "T003_a"], False),
        (["plot0_T1", "plot0_T2", "plot0_T3"], True),
        (["a_T1", "a_T2", "b_T1", "b_T2"], True),
        (["a", "b", "c"], False),
    ],
)
def test_which_names_may_be_time_points(names, doubtful):
    said, doubt = describe_groups({name: parse_tube(name) or name for name in names})
    assert bool(doubt) == doubtful and said.startswith(f"{len(names)} scans in ")


def test_groups_from_folders_and_wrong_patterns(tmp_path):
    for plot in ("north", "south", "west"):
        pairs(tmp_path / plot, f"{plot}_1", f"{plot}_2")
    pairs(tmp_path, "stray")
    entries = find_pairs(tmp_path, True, "(north|south|west)/")
    assert [entry.tube for entry in entries] == ["north", "north", "south", "south", "stray", "west", "west"]
    said, _ = describe_groups({entry.name: entry.tube for entry in entries}, "x")
    assert said.endswith("1 names say no group and are each their own")
    with pytest.raises(ValueError, match=r"group_by is '\(', no regular expression"):
        find_pairs(tmp_path, True, "(")
    with pytest.raises(ValueError, match=r"group_by is 'plot', which fits no name"):
        find_pairs(tmp_path, True, "plot")


# ---------------------------------------------------------------- one call


def test_load_scans_refuses_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="source 'segrot' is unknown; choose one of synthetic, segroot, folder"):
        load_scans("segrot", "train")
    for source in datasets.SOURCES:
        with pytest.raises(ValueError, match="split 'val' is unknown; choose one of train, valid, test, all"):
            load_scans(source, "val", tmp_path)
        with pytest.raises(ValueError, match="limit is 0"):
            load_scans(source, "train", tmp_path, limit=0)
        with pytest.raises(ValueError, match="seed is -1: give a whole number, 0 or more"):
            load_scans(source, "train", tmp_path, seed=-1)
    for wrong in ({"limit": -1}, {"val_share": 1.0}, {"val_share": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            load_parts("synthetic", **wrong)


def test_load_scans_draws_synthetic_scans():
    scans = load_scans("synthetic", "valid", limit=2, seed=5, size=(96, 128))
    assert len(scans) == 2 and all(scan.image.shape == (96, 128, 3) and scan.mask is not None for scan in scans)
    again = load_scans("synthetic", "valid", limit=2, seed=5, size=(96, 128))
    np.testing.assert_array_equal(scans[1].image, again[1].image)
    assert len(load_scans("synthetic", "valid", size=(64, 64))) == datasets.SYNTHETIC_COUNTS["valid"]
    assert len(load_scans("synthetic", "all", limit=4, size=(64, 64))) == 4


# ---------------------------------------------------------------- SegRoot


def test_segroot_index_is_the_published_split():
    index = segroot_index()
    assert {part: len(names) for part, names in index["split"].items()} == {"train": 39, "valid": 13, "test": 13}
    assert index["commit"] == "8b83132de20de709865da07b1ab97d51d9699c3d" and index["dpi"] == 300
    sums = [known for part in ("train", "valid") for name in index["split"][part].values() for known in name.values()]
    assert len(set(sums)) == 104 and all(len(known) == 64 for known in sums)
    leaks = leak_report(index["split"])  # the split is by image
    test_tubes = {parse_tube(name) for name in index["split"]["test"]}
    assert len(test_tubes) == 10 and sum("test" in where for where in leaks.values()) == 8


@pytest.fixture
def tiny_segroot(server, tmp_path, monkeypatch):
    """Four invented pairs served on this machine in SegRoot's layout; one of the test part has no known checksum."""
    remote, address = server
    names = [f"Untitled_T00{i}_L001_11.04.17_0_004_Untitled" for i in range(4)]
    for name in names:
        write(remote / f"{name}.jpg", IMAGE, dpi=(100, 100))
        write(remote / f"{name}-mask.jpg", GREY)

    def sums(name: str) -> dict:
        files = {"image": f"{name}.jpg", "mask": f"{name}-mask.jpg"}
        return {kind: hashlib.sha256((remote / file).read_bytes()).hexdigest() for kind, file in files.items()}

    index = {"commit": "abc", "dpi": 300, "split": {"train": {n: sums(n) for n in names[:2]}}}
    index["split"] |= {"valid": {names[2]: sums(names[2])}, "test": {names[3]: {"image": None, "mask": None}}}

    monkeypatch.setattr(datasets, "segroot_index", lambda: index)
    monkeypatch.setattr(datasets, "SEGROOT_URL", address)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # no pause between retries
    monkeypatch.setenv("ROOTSAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROOTSAM_DATA", raising=False)
    return remote, names


def test_segroot_is_downloaded_once_and_verified(tiny_segroot):
    remote, names = tiny_segroot
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scans = load_scans("segroot", "train")
    assert [scan.name for scan in scans] == names[:2]
    assert scans[0].tube == "T000" and scans[0].date == "2017-04-11"
    assert scans[0].mm_per_px == pytest.approx(25.4 / 300)  # not the 100 dpi that the file claims
    for file in remote.iterdir():
        file.unlink()
    assert len(load_scans("segroot", "train", limit=1)) == 1  # from the cache


def test_unknown_checksums_are_said_to_be_unverified(tiny_segroot):
    with pytest.warns(UserWarning, match="checksum not known for 2 files: not verified"):
        assert len(read_segroot("test")) == 1


def test_damaged_downloads_are_refused_and_not_kept(tiny_segroot):
    remote, names = tiny_segroot
    file = remote / f"{names[2]}.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=rf"{names[2]}\.jpg arrived truncated or changed"):
        read_segroot("valid")
    file.write_bytes(whole)
    assert len(read_segroot("valid")) == 1


def test_missing_downloads_say_what_to_do(tiny_segroot, monkeypatch):
    remote, names = tiny_segroot
    (remote / f"{names[2]}-mask.jpg").unlink()
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*set ROOTSAM_DATA"):
        read_segroot("valid")
    monkeypatch.setattr(datasets, "SEGROOT_URL", "http://127.0.0.1:9/")  # nothing listens there
    with pytest.raises(ConnectionError, match="check the connection"):
        read_segroot("train")


@pytest.mark.parametrize(
    ("url", "location", "refused"),
    [
        ("https://a/b", "http://a/b", True),
        ("https://a/b", "https://c/b", False),
        ("https://a/b", "/c", False),
        ("https://a/b", None, False),
        ("http://127.0.0.1/b", "/c", False),
    ],
)
def test_a_redirect_to_plain_http_is_refused(url, location, refused):
    response = requests.Response()
    response.url, response.status_code = url, 302
    response.headers.update({"location": location} if location else {})
    with pytest.raises(ConnectionError, match="redirected to plain http") if refused else nullcontext():
        downloader().kwargs["hooks"]["response"](response)


@pytest.mark.parametrize("place", [".", "data_raw", "data/data_raw", "segroot/data_raw"])
def test_an_existing_copy_is_found_and_checked(place, tiny_segroot, tmp_path, monkeypatch):
    remote, names = tiny_segroot
    copy = tmp_path / "copy" / place
    copy.parent.mkdir(parents=True, exist_ok=True)
    remote.rename(copy)
    assert len(load_scans("segroot", "train", tmp_path / "copy")) == 2
    monkeypatch.setenv("ROOTSAM_DATA", str(tmp_path / "copy"))
    assert len(load_scans("segroot", "valid")) == 1
    write(copy / f"{names[0]}-mask.jpg", GREY[::-1].copy())
    with pytest.raises(ValueError, match=rf"{names[0]}-mask\.jpg is not SegRoot's file"):
        load_scans("segroot", "train")
    (copy / f"{names[3]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{names[3]}\.jpg of SegRoot's test split does not exist"):
        load_scans("segroot", "test")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_scans("segroot", "test", tmp_path / "nowhere")


def test_real_segroot_scans(segroot):
    scans = load_scans("segroot", "valid", segroot, limit=3)
    for scan in scans:
        assert scan.image.shape[1:] == (2550, 3) and scan.image.shape[0] in (2272, 2273)
        assert 0.001 < scan.mask.mean() < 0.035
        assert scan.mm_per_px == pytest.approx(0.0847, abs=1e-4) and scan.tube.startswith("T")
        assert scan.date.startswith("2017-")
    assert len(tile(scans[0], 1024)) == 9 and len(tile(scans[0], 512)) == 25
    (path,) = segroot.rglob(f"{scans[0].name}.jpg")
    same = read_folder(path.parent, "all", limit=1, dpi=300)[0]  # the folder reader knows the layout too
    assert same.mask.shape == same.image.shape[:2] and same.mm_per_px == pytest.approx(25.4 / 300)


# ---------------------------------------------------------------- splits


@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=25),
    seed=st.integers(0, 2**32 - 1),
    shares=st.tuples(*[st.floats(0.05, 1)] * 3),
)
@settings(max_examples=80, deadline=None)
def test_a_tube_is_never_in_two_parts(sizes, seed, shares):
    names = [f"crop_T{tube:03d}_L{level:03d}" for tube, count in enumerate(sizes) for level in range(count)]
    wanted = dict(zip(("train", "valid", "test"), shares, strict=True))
    parts = grouped_split(names, wanted, np.random.default_rng(seed))
    assert leak_report(parts) == {}
    assert sorted(name for part in parts.values() for name in part) == names
    assert all(parts.values()), "a part is empty"
    assert all(part == sorted(part) for part in parts.values()), "the order changed"


def test_shares_are_met_and_the_seed_decides():
    names = [f"x_T{tube:03d}_L{level}" for tube in range(20) for level in range(5)]
    shares = {"train": 0.7, "valid": 0.15, "test": 0.15}
    parts = grouped_split(names, shares, np.random.default_rng(0))
    assert {part: len(found) for part, found in parts.items()} == {"train": 70, "valid": 15, "test": 15}
    assert parts == grouped_split(names, shares, np.random.default_rng(0))
    assert parts != grouped_split(names, shares, np.random.default_rng(1))
    train_valid = segroot_index()["split"]["train"] | segroot_index()["split"]["valid"]
    by_tube = grouped_split(train_valid, {"train": 3, "valid": 1}, np.random.default_rng(0))
    assert leak_report(by_tube) == {} and len(by_tube["train"]) == 39 and len(by_tube["valid"]) == 13


def test_leaks_are_reported():
    scans = [Scan(IMAGE, None, str(i), tube) for i, tube in enumerate(("T1", "T2", "T1"))]
    assert leak_report({"train": scans[:2], "test": scans[2:]}) == {"T1": ["train", "test"]}


@pytest.mark.parametrize(
    "shares", [{}, {"train": 1.0, "test": 0.0}, {"train": 2, "test": -1}, {"train": 1, "test": float("nan")}]
)
def test_impossible_shares_are_refused(shares):
    with pytest.raises(
        ValueError, match=r"shares are empty|the share of test is (0\.0|-1|nan): give a number, greater"
    ):
        grouped_split(["a", "b", "c"], shares, np.random.default_rng(0))


# ---------------------------------------------------------------- tiles


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 64))
@settings(max_examples=120, deadline=None)
def test_tiles_cover_every_pixel_and_are_all_one_size(height, width, size):
    rows, cols = np.mgrid[:height, :width].astype(np.uint8)
    scan = Scan(np.dstack([rows, cols, rows ^ cols]), (rows + cols) % 3 == 0, "s", "T001", "", 0.1)
    seen = np.zeros((height, width), int)
    for patch in tile(scan, size):
        assert patch.image.shape == (size, size, 3) and patch.mask.shape == (size, size)
        row, col = patch.origin
        assert patch.name == f"s@{row},{col}" and patch.tube == "T001" and patch.mm_per_px == 0.1
        assert patch.padding == (max(size - height, 0), max(size - width, 0))
        inside = (slice(row, row + size), slice(col, col + size))
        h, w = seen[inside].shape
        assert (h, w) == (size - patch.padding[0], size - patch.padding[1]), "a tile runs over the edge"
        np.testing.assert_array_equal(patch.image[:h, :w], scan.image[inside])
        np.testing.assert_array_equal(patch.mask[:h, :w], scan.mask[inside])
        seen[inside] += 1
    assert seen.min() >= 1, "pixels that no tile covers"


def test_small_scans_are_mirrored_image_and_mask_alike():
    (patch,) = tile(Scan(IMAGE, MASK, "s", "T001"), 40)
    assert patch.padding == (16, 8)
    np.testing.assert_array_equal(patch.image[24:, :32], IMAGE[-2:-18:-1])
    np.testing.assert_array_equal(patch.mask[:24, 32:], MASK[:, -2:-10:-1])
    assert tile(Scan(IMAGE, None, "s", "T001"), 16)[0].mask is None
    with pytest.raises(ValueError, match="size is 0"):
        tile(Scan(IMAGE, MASK, "s", "T001"), 0)
