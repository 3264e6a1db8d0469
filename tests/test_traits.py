"""Root traits: lines of known length and width at many angles, pruning, the table, and agreement by hand."""

import math

import numpy as np
import pytest
from skan import Skeleton

from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import Scan
from rootsam_lib.metrics import dilate
from rootsam_lib.results import read_csv, write_csv
from rootsam_lib.traits import (
    METHODS,
    Cleaning,
    depth_mm,
    measure,
    parse_location,
    root_contrast,
    root_length_mm,
    segment_lengths,
    trace,
    trait_row,
)

RAW = Cleaning(0, 0)


def line(angle: float, width: float, length: float = 300, side: int = 400, centre=(200.3, 199.6)) -> np.ndarray:
    """A straight bar with flat ends."""
    y, x = np.mgrid[:side, :side].astype(float)
    along, across = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    u = (x - centre[0]) * along + (y - centre[1]) * across
    v = (y - centre[1]) * along - (x - centre[0]) * across
    return (abs(u) <= length / 2) & (abs(v) <= width / 2)


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_length_at_many_angles_and_the_stated_bias(width):
    errors = {method: [] for method in METHODS}
    for angle in np.arange(0, 180, 11.5):
        tracing = trace(line(angle, width), 1.0)
        path = max(tracing.paths, key=len)
        straight = np.hypot(*(path[-1] - path[0]))
        for method in METHODS:
            errors[method].append(segment_lengths(path, method).sum() / straight - 1)
        # Thinning takes half the width off each end, give or take a pixel.
        assert 300 - width - 3 < root_length_mm(line(angle, width), 1.0) < 300 - width + 3
    mean, most = ({m: f(e) for m, e in errors.items()} for f in (np.mean, np.max))
    assert 0 <= mean["smoothed"] < 0.001 and most["smoothed"] < 0.003
    assert 0.015 < mean["kimura"] < 0.02 and most["kimura"] < 0.032
    assert 0.05 < mean["chain"] < 0.06 and 0.07 < most["chain"] < 0.085


def test_units():
    mask = line(30, 4)
    assert root_length_mm(mask, 0.1, cleaning=RAW) == pytest.approx(root_length_mm(mask, 1.0, cleaning=RAW) / 10)


def test_methods_by_hand():
    stairs = np.array([[0, 0], [0, 1], [1, 2], [2, 3], [2, 4], [2, 5]])  # two diagonal steps, three straight ones
    assert segment_lengths(stairs, "chain").sum() == pytest.approx(3 + 2 * math.sqrt(2))
    assert segment_lengths(stairs, "kimura").sum() == pytest.approx(math.sqrt(2**2 + (2 + 1.5) ** 2) + 1.5)
    assert segment_lengths(stairs[:1]).sum() == 0
    with pytest.raises(ValueError, match="choose one of smoothed"):
        segment_lengths(stairs, "kimora")


def test_the_chain_is_skans_own_length():
    mask = synthetic_scans("train", 1, seed=1, height=256, width=256)[0].mask
    tracing = trace(mask, 1.0, RAW)
    expected = Skeleton(tracing.centre_lines).path_lengths().sum()
    assert sum(segment_lengths(path, "chain").sum() for path in tracing.paths) == pytest.approx(expected)
    assert expected > 50


def test_a_circle():
    y, x = np.mgrid[:300, :300]
    radius = np.hypot(x - 150, y - 150)
    assert root_length_mm(abs(radius - 100) < 3, 1.0) == pytest.approx(2 * np.pi * 100, rel=0.015)


@pytest.mark.parametrize("width", [2, 4, 7, 12])
def test_diameter_area_and_the_stated_bias(width):
    rows = [measure(line(angle, width), 0.1) for angle in np.arange(3, 180, 14)]
    diameters = np.array([row["mean_diameter_mm"] for row in rows]) / 0.1
    assert -0.05 < diameters.mean() - width < 0.4
    assert rows[0]["root_area_mm2"] == pytest.approx(width * 300 * 0.01, rel=0.03)


def test_length_by_diameter():
    mask = np.zeros((300, 400), bool)
    mask[50:54, 50:250] = True  # 0.4 mm wide
    mask[150:161, 100:300] = True  # 1.1 mm
    row = measure(mask, 0.1)
    parts = [
        row[f"length_mm_diameter_{name}"] for name in ("below_0.3_mm", "0.3_to_0.6_mm", "0.6_to_1_mm", "from_1_mm")
    ]
    assert sum(parts) == pytest.approx(row["root_length_mm"])
    assert parts[1] == pytest.approx(20, rel=0.03) and parts[3] == pytest.approx(19, rel=0.06)
    assert parts[0] < 0.7 and parts[2] < 0.7
    assert row["length_density_mm_per_cm2"] == pytest.approx(row["root_length_mm"] / 12)


def bumpy() -> tuple[np.ndarray, np.ndarray]:
    """A root of 9 px with a lateral, and the same with bumps along its edges."""
    plain = np.zeros((200, 400), bool)
    plain[90:99, 20:380] = True
    plain[20:90, 200:205] = True
    rough = plain.copy()
    for column in range(40, 360, 40):
        rough[86:90, column : column + 3] = True
        rough[99:104, column + 15 : column + 18] = True
    return plain, rough


def test_pruning_takes_bumps_off_and_leaves_laterals():
    plain, rough = bumpy()
    # Four diagonal corner branches of the root's flat ends aside, nothing changes on the smooth root.
    expected = root_length_mm(plain, 1.0, cleaning=RAW)
    assert expected == pytest.approx(360 + 74, abs=12)
    assert root_length_mm(rough, 1.0, cleaning=RAW) > expected + 70
    assert root_length_mm(rough, 1.0, cleaning=Cleaning(0, 1)) == pytest.approx(expected, abs=10)
    assert measure(rough, 1.0, cleaning=RAW)["branch_points"] > 10
    assert measure(rough, 1.0, cleaning=Cleaning(0, 1))["branch_points"] == 1
    assert trace(rough, 1.0, Cleaning(0, 1)).centre_lines[30:80, 200:205].any(axis=1).all(), "the lateral is gone"


def test_pruning_is_by_the_root_s_own_diameter():
    plain, _ = bumpy()
    plain[60:90, 100:103] = True  # sticks out by 30 px: three diameters
    assert trace(plain, 1.0, Cleaning(0, 1)).centre_lines[62:85, 100:103].any()
    assert not trace(plain, 1.0, Cleaning(0, 5)).centre_lines[62:85, 100:103].any()


def test_specks_and_holes():
    mask = np.zeros((120, 200), bool)
    mask[50:60, 20:180] = True
    clean = root_length_mm(mask, 0.1)
    mask[54:56, 100:102] = False  # a hole of 4 px = 0.04 mm2 makes a loop
    mask[10:12, 10:14] = True  # a speck of 8 px = 0.08 mm2
    mask[90:93, 10:14] = True  # 12 px = 0.12 mm2: kept
    tracing = trace(mask, 0.1, Cleaning(0.1, 1))
    assert tracing.mask[54, 100] and not tracing.mask[10, 10] and tracing.mask[90, 10]
    mask[90:93, 10:14] = False
    assert root_length_mm(mask, 0.1) == pytest.approx(clean)
    assert root_length_mm(mask, 0.1, cleaning=RAW) > clean + 0.3


def test_a_ragged_mask_is_hardly_longer():
    scan = max(synthetic_scans("train", 6, seed=2, height=384, width=384), key=lambda s: s.mask.sum())
    rng = np.random.default_rng(0)
    ragged = scan.mask | (dilate(scan.mask) & (rng.random(scan.mask.shape) > 0.6))
    ragged |= rng.random(scan.mask.shape) > 0.9995
    true, measured = root_length_mm(scan.mask, 0.1), root_length_mm(ragged, 0.1)
    naive = 0.1 * sum(segment_lengths(path, "chain").sum() for path in trace(ragged, 0.1, RAW).paths)
    assert abs(measured / true - 1) < 0.08 and naive / true - 1 > 0.2


def test_masks_without_roots_and_with_dots_only():
    empty = np.zeros((50, 60), bool)
    row = measure(empty, 0.1)
    assert row["root_length_mm"] == row["root_area_mm2"] == row["branch_points"] == 0
    assert math.isnan(row["mean_diameter_mm"])
    empty[10, 10] = empty[30, 30] = True
    row = measure(empty, 0.1, cleaning=RAW)
    assert row["root_length_mm"] == 0 and row["root_area_mm2"] == pytest.approx(0.02)
    assert measure(np.ones((50, 60), bool), 0.1)["root_area_mm2"] == pytest.approx(30)


def test_bad_input_is_one_sentence():
    mask = line(0, 4)
    for size in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"mm_per_px, the edge of a pixel .25.4 / dpi., is"):
            measure(mask, size)
    with pytest.raises(ValueError, match="must be a bool array"):
        measure(mask.astype(int), 0.1)
    for wrong in ((-1, 0), (0, math.nan), (math.inf, 0), (0, "1"), (0, 0, -1)):
        with pytest.raises(ValueError, match=r"(speck_mm2|spur_diameters|speck_px) is .*: give a number, 0 or more"):
            Cleaning(*wrong)


def test_location_and_depth():
    assert parse_location("Untitled_T002_L004_11.04.17_084840_004_Untitled") == 4
    assert parse_location("Peanut_T001_L012_2017.06.08") == 12
    assert parse_location("Larch_T1_LEFT") is None and parse_location("XL004") is None
    assert depth_mm(1, 200, 90) == pytest.approx(100) and depth_mm(3, 200, 30) == pytest.approx(250)
    for angle in (0, -10, 91, math.nan):
        with pytest.raises(ValueError, match="tube_angle"):
            depth_mm(1, 200, angle)
    with pytest.raises(ValueError, match="window_mm"):
        depth_mm(1, 0)


def test_quality():
    image = np.full((10, 10, 3), 100, np.uint8)
    image[:2, :, 1] = 255
    scan, empty = Scan(image, None, "a", "a"), np.zeros((10, 10), bool)
    row = trait_row(scan, empty, 0.4)
    assert (row["qc_predicted_iou"], row["qc_all_background"], row["qc_saturated_share"]) == (0.4, 1, 0.2)
    assert trait_row(scan, ~empty)["qc_all_background"] == 0 and row["qc_root_contrast"] is None
    mask = np.zeros((60, 60), bool)
    mask[28:32] = True
    image = np.full((60, 60, 3), 90, np.uint8)
    image[::2] = 110  # soil of 100 ± 10
    image[mask] = 130
    assert root_contrast(image, mask) == pytest.approx(3)
    image[40:, 30:] = 255  # tape
    excluded = (image == 255).any(axis=2)
    assert root_contrast(image, mask, excluded) == pytest.approx(3) != root_contrast(image, mask)


def test_table(tmp_path):
    image = np.zeros((400, 400, 3), np.uint8)
    scans = [Scan(image, None, "a_T002_L004_x", "T002", "2017-04-11", 0.1), Scan(image, None, "b", "b", "", 0.1)]
    rows = [trait_row(scans[0], line(20, 4), 0.5), trait_row(scans[1], np.zeros((400, 400), bool))]
    assert rows[0]["depth_mm"] == pytest.approx(3.5 * 40 * math.sqrt(0.5)) and rows[1]["depth_mm"] is None
    read = read_csv(write_csv(tmp_path / "traits.csv", rows))
    assert [row["scan"] for row in read] == ["a_T002_L004_x", "b"] and list(read[0]) == list(rows[0])
    assert read[0]["root_length_mm"] == pytest.approx(rows[0]["root_length_mm"])
    assert read[1]["mean_diameter_mm"] is read[1]["depth_mm"] is read[1]["qc_predicted_iou"] is None


def test_without_a_resolution_everything_is_in_pixels():
    mask = line(20, 4)
    mask[5:8, 5:9] = True  # a speck of 12 px: noise
    image = np.zeros((*mask.shape, 3), np.uint8)
    row = trait_row(Scan(image, None, "a_T002_L004_x", "T002", "2017-04-11", None), mask)
    at_300_dpi = trait_row(Scan(image, None, "a_T002_L004_x", "T002", "2017-04-11", 25.4 / 300), mask)
    assert not [name for name in row if "mm" in name and name not in ("mm_per_px", "depth_mm")]
    assert row["mm_per_px"] is row["depth_mm"] is None and row["window_px2"] == mask.size
    assert row["root_length_px"] == pytest.approx(300 - 4, abs=3)
    assert row["root_length_px"] == pytest.approx(at_300_dpi["root_length_mm"] * 300 / 25.4)
    assert row["root_area_px2"] == pytest.approx(line(20, 4).sum())
    assert row["mean_diameter_px"] == pytest.approx(4, abs=0.5)
    assert row["length_density_px_per_px2"] == pytest.approx(row["root_length_px"] / mask.size)
    classes = [name for name in row if name.startswith("length_px_diameter")]
    assert classes == [f"length_px_diameter_{part}_px" for part in ("below_4", "4_to_8", "8_to_12", "from_12")]
    assert sum(row[name] for name in classes) == pytest.approx(row["root_length_px"])
    assert measure(mask, None, cleaning=Cleaning(speck_px=0))["root_area_px2"] == pytest.approx(mask.sum())
    with_window = trait_row(Scan(image, None, "a_L004", "a", "", None), mask, window_mm=20)
    assert with_window["depth_mm"] == pytest.approx(3.5 * 20 * math.sqrt(0.5))
