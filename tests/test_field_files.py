"""RSML and RhizoVision's columns, checked by other readers than the ones that wrote them; and what is excluded."""

import csv
import re
from datetime import datetime
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from stub_predictor import StubPredictor

from rootsam_lib.__main__ import main
from rootsam_lib.apps.rsml import rhizovision_row, rsml
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.data.datasets import load_scans
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.folders import find_pairs, load_entry
from rootsam_lib.data.masks import checked_exclusion, read_exclusion
from rootsam_lib.data.scans import Scan, tile
from rootsam_lib.evaluation.calibration import score_row
from rootsam_lib.evaluation.protocols import score_answer, score_mask
from rootsam_lib.metrics import class_mean_iou, count
from rootsam_lib.results import read_csv
from rootsam_lib.traits import measure, trace, trait_row

DECIMAL = re.compile(r"-?\d+(\.\d+)?")  # xs:decimal: no exponent
RHIZOVISION = [
    "File.Name",
    "Region.of.Interest",
    "Number.of.Root.Tips",
    "Number.of.Branch.Points",
    "Total.Root.Length.mm",
    "Branching.frequency.per.mm",
    "Network.Area.mm2",
    "Average.Diameter.mm",
    "Median.Diameter.mm",
    "Maximum.Diameter.mm",
    "Perimeter.mm",
    "Volume.mm3",
    "Surface.Area.mm2",
    "Computation.Time.s",
]


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return synthetic_scans("train", 1, seed=1, height=256, width=256)[0].mask


def cross() -> np.ndarray:
    """Two bars of 5 px, 200 and 101 px long, that meet in a T; and a third, of 10 × 60 px, on its own."""
    drawn = np.zeros((240, 300), bool)
    drawn[100:105, 50:250] = True
    drawn[105:201, 148:153] = True
    drawn[20:30, 20:80] = True
    return drawn


def children(node: minidom.Element) -> list[minidom.Element]:
    return [child for child in node.childNodes if child.nodeType == child.ELEMENT_NODE]


def check_schema(document: minidom.Document) -> None:
    """Every field that RSML's schema (RSMLValidator, rsml.xsd) requires, in its order and type, and no other."""
    top = document.documentElement
    metadata, scene = children(top)
    assert (top.tagName, metadata.tagName, scene.tagName) == ("rsml", "metadata", "scene")
    about = {child.tagName: child for child in children(metadata)}
    needed = {"version", "unit", "resolution", "last-modified", "software", "user", "file-key"}
    assert needed <= set(about) <= needed | {"image", "property-definitions", "time-sequence"}
    assert len(about) == len(children(metadata))
    text = {name: about[name].firstChild.data if about[name].firstChild else "" for name in needed}
    assert DECIMAL.fullmatch(text["resolution"]) and text["unit"] in ("mm", "pixel")
    datetime.fromisoformat(text["last-modified"])
    for captured in metadata.getElementsByTagName("captured"):
        datetime.fromisoformat(captured.firstChild.data)
    for definition in metadata.getElementsByTagName("property-definition"):
        assert {"label", "type"} <= {child.tagName for child in children(definition)} <= {"label", "type", "unit"}
    assert children(scene)
    for plant in children(scene):
        assert plant.tagName == "plant" and children(plant)
        for root in children(plant):
            assert root.tagName == "root"
            assert [child.tagName for child in children(root)] == ["properties", "geometry", "functions"]
            _, geometry, functions = children(root)
            (polyline,) = children(geometry)
            points = children(polyline)
            assert polyline.tagName == "polyline" and len(points) >= 2
            for point in points:
                assert point.tagName == "point" and set(dict(point.attributes.items())) == {"x", "y"}
                assert all(DECIMAL.fullmatch(value) for value in dict(point.attributes.items()).values())
            for function in children(functions):
                assert dict(function.attributes.items()) == {"name": "diameter", "domain": "polyline"}
                assert len(children(function)) == len(points)
                assert all(DECIMAL.fullmatch(sample.getAttribute("value")) for sample in children(function))
    ids = [node.getAttribute("id") for tag in ("plant", "root") for node in scene.getElementsByTagName(tag)]
    assert len(ids) == len(set(ids)) and all(ids)


def test_rsml_keeps_geometry_diameter_and_topology():
    tracing = trace(cross(), 0.1)
    written = minidom.parseString(rsml(tracing, 0.1, "T001_L001", "a.png", "2017-04-11"))
    check_schema(written)
    plants = written.getElementsByTagName("plant")
    assert sorted(len(plant.getElementsByTagName("root")) for plant in plants) == [1, 3]
    assert float(written.getElementsByTagName("resolution")[0].firstChild.data) == pytest.approx(10)  # px in 1 mm
    lengths, diameters = [], []
    for root in written.getElementsByTagName("root"):
        points = [(float(p.getAttribute("x")), float(p.getAttribute("y"))) for p in root.getElementsByTagName("point")]
        lengths.append(float(np.hypot(*np.diff(points, axis=0).T).sum()))
        diameters += [float(sample.getAttribute("value")) for sample in root.getElementsByTagName("sample")]
        assert all(cross()[round(y), round(x)] for x, y in points)
    assert sum(lengths) == pytest.approx(195 + 96 + 50, abs=12)
    assert 5 <= np.median(diameters) < 6.5 and max(diameters) >= 9


def test_rsml_is_read_by_pandas_and_fits_a_real_looking_mask(mask, tmp_path):
    file, tracing = tmp_path / "a.rsml", trace(mask, None)
    file.write_text(rsml(tracing, None, "a"), encoding="utf-8")
    check_schema(minidom.parse(str(file)))
    points = pd.read_xml(file, xpath=".//point", parser="etree")
    assert len(points) == sum(len(path) for path in tracing.paths) > 50
    np.testing.assert_allclose(points[["y", "x"]], np.concatenate(tracing.paths), atol=0.006)
    about = pd.read_xml(file, xpath="./metadata", parser="etree").iloc[0]
    assert about["unit"] == "pixel" and about["resolution"] == 1
    lengths = pd.read_xml(file, xpath=".//root/properties", parser="etree")["length"]
    assert lengths.sum() == pytest.approx(measure(mask, None)["root_length_px"], rel=1e-3)


def test_a_scan_without_roots_has_no_rsml():
    with pytest.raises(ValueError, match="a has no roots"):
        rsml(trace(np.zeros((50, 50), bool), 0.1), 0.1, "a")


def test_rhizovision_columns_by_hand():
    row, own = rhizovision_row(trace(cross(), 0.1), 0.1, "a.png"), measure(cross(), 0.1)
    families = [f"{what}.Diameter.Range" for what in ("Root.Length", "Projected.Area", "Surface.Area", "Volume")]
    units = ("mm", "mm2", "mm2", "mm3")
    ranges = [f"{what}.{k}.{unit}" for what, unit in zip(families, units, strict=True) for k in (1, 2, 3, 4)]
    assert list(row) == RHIZOVISION + ranges
    assert row["Total.Root.Length.mm"] == pytest.approx(own["root_length_mm"])
    assert row["Network.Area.mm2"] == pytest.approx(own["root_area_mm2"])
    assert row["Average.Diameter.mm"] == pytest.approx(own["mean_diameter_mm"])
    assert (row["Number.of.Root.Tips"], row["Number.of.Branch.Points"]) == (5, 1)
    assert 0.5 <= row["Median.Diameter.mm"] <= 0.65 and 0.9 <= row["Maximum.Diameter.mm"] < 1.1
    assert row["Perimeter.mm"] == pytest.approx((2 * 200 + 2 * 96 + 2 * 70) * 0.1, rel=0.05)
    assert row["Volume.mm3"] == pytest.approx(np.pi / 4 * (0.55**2 * 29 + 1.0**2 * 5), rel=0.25)
    for what, total in zip(families, ("Total.Root.Length.mm", None, "Surface.Area.mm2", "Volume.mm3"), strict=True):
        parts = [value for name, value in row.items() if name.startswith(f"{what}.")]
        assert total is None or sum(parts) == pytest.approx(row[total])
    empty = rhizovision_row(trace(np.zeros((50, 50), bool), 0.1), 0.1, "a.png")
    assert list(empty) == list(row) and not any(value for name, value in empty.items() if name.endswith("mm"))


def scans_folder(tmp_path: Path) -> Path:
    """Two scans with roots, of one window, and one without; white is what the stub takes for root."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, drawn in (("a_T001_L001_11.04.17", cross()), ("b", cross()), ("c", np.zeros((100, 100), bool))):
        image = np.repeat(drawn[..., None], 3, 2).astype(np.uint8) * 255
        image[::7, ::2, 2] = 90  # soil
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_command_turns_a_finished_folder_into_the_field_s_files(tmp_path, capsys):
    folder = scans_folder(tmp_path)
    segment_folder(folder, StubPredictor(), tmp_path / "mm", dpi=254, say=lambda line: None)
    segment_folder(folder, StubPredictor(), tmp_path / "px", say=lambda line: None)
    (tmp_path / "px" / "c.rsml").touch()  # of a mask that had roots
    assert main(["rsml", str(tmp_path / "mm")]) == main(["rsml", str(tmp_path / "px")]) == 0
    said = capsys.readouterr()
    assert "2 RSML files" in said.out and "c has no roots" in said.err
    for unit, file in (("mm", "rhizovision.csv"), ("px", "rhizovision-px.csv")):
        with open(tmp_path / unit / file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        assert [row["File.Name"] for row in rows] == [f"{n}-mask.png" for n in ("a_T001_L001_11.04.17", "b", "c")]
        lengths = [float(row[f"Total.Root.Length.{unit}"]) for row in rows]
        traits = read_csv(tmp_path / unit / "traits.csv")
        assert lengths == pytest.approx([row[f"root_length_{unit}"] for row in traits], rel=1e-4)
        assert not any("mm" in name for name in rows[0]) or unit == "mm"
        assert sorted(path.stem for path in (tmp_path / unit).glob("*.rsml")) == ["a_T001_L001_11.04.17", "b"]
        check_schema(minidom.parse(str(tmp_path / unit / "b.rsml")))
    assert main(["rsml", str(folder)]) == 2 and "give the folder that segment wrote" in capsys.readouterr().err


# --- What is excluded


def test_excluded_pixels_are_neither_root_nor_window():
    drawn, excluded = cross(), np.zeros(cross().shape, bool)
    excluded[:, 149:] = True  # half of the long bar
    excluded[22:25, 40:43] = True  # so small that it would be filled as a hole
    whole, part = measure(drawn, 0.1), measure(drawn, 0.1, excluded=excluded)
    kept = (~excluded).sum() / drawn.size
    assert part["root_area_mm2"] == pytest.approx((drawn & ~excluded).sum() * 0.01)
    assert 0 < part["root_length_mm"] < 0.8 * whole["root_length_mm"]
    window = drawn.size * 0.01 / 100 * kept
    assert part["length_density_mm_per_cm2"] == pytest.approx(part["root_length_mm"] / window)
    image = np.zeros((*drawn.shape, 3), np.uint8)
    image[excluded] = 255  # tape that shines does not count as a blinded scanner
    row = trait_row(Scan(image, None, "a", "a", "", 0.1, excluded), drawn)
    assert row["window_cm2"] == pytest.approx(window) and row["qc_saturated_share"] == 0
    assert row["root_area_mm2"] == part["root_area_mm2"]
    nothing = trait_row(Scan(image, None, "a", "a", "", 0.1, np.ones(drawn.shape, bool)), drawn)
    assert nothing["window_cm2"] == nothing["root_length_mm"] == 0 and nothing["qc_all_background"] == 1


def test_scores_are_those_of_the_rest():
    rng = np.random.default_rng(0)
    truth, found = cross(), cross() ^ (rng.random(cross().shape) > 0.98)
    excluded = np.zeros(truth.shape, bool)
    excluded[:, 149:] = True
    cut = score_mask(found[:, :149], truth[:, :149])
    masked = score_mask(found, truth, excluded)
    assert masked["counts"] == cut["counts"] == tuple(count(found[:, :149], truth[:, :149]))
    assert masked["class_mean_iou"] == pytest.approx(class_mean_iou(count(found[:, :149], truth[:, :149])))
    for name in ("root_iou", "dice", "cl_dice", "pooled_dice_dilated"):
        assert masked[name] == pytest.approx(cut[name])
    assert masked["root_iou"] != score_mask(found, truth)["root_iou"]
    image = np.zeros((*truth.shape, 3), np.uint8)
    measuring = {"window_mm": None, "tube_angle": 45.0}
    scan = Scan(image, truth, "a", "a", "", 0.1, excluded)
    row = score_row(scan, found, trait_row(scan, found, **measuring), measuring)
    assert row["root_iou"] == pytest.approx(cut["root_iou"])
    assert row["true_root_area_mm2"] == pytest.approx(truth[:, :149].sum() * 0.01)


def test_what_is_excluded_is_no_root_in_training_and_counts_in_no_patch(tmp_path):
    folder = scans_folder(tmp_path)
    Image.fromarray(cross()).save(folder / "b-mask.png")
    entry = next(entry for entry in find_pairs(folder, need_masks=False) if entry.name == "b")
    scan = load_entry(entry, exclude="0,0,149,999")
    np.testing.assert_array_equal(scan.mask, cross() & (np.arange(300) >= 149))
    (patch,) = tile(scan, 320)  # larger than the scan: padded
    assert patch.excluded[:240, :149].all() and not patch.excluded[:240, 149:].any()
    all_root = score_answer(lambda image, prompts: np.ones(image.shape[:2], bool), patch)
    assert sum(all_root["counts"]) == 240 * 151


def test_exclusion_is_read_from_rectangles_a_mask_or_a_folder(tmp_path):
    expected = np.zeros((60, 80), bool)
    expected[5:20, 10:30] = expected[40:, 70:] = True
    text = "10,5,30,20; 70,40,999,999"
    np.testing.assert_array_equal(read_exclusion(text, "a", (60, 80)), expected)
    Image.fromarray(expected.astype(np.uint8) * 7).save(tmp_path / "a-exclude.png")
    for source in (tmp_path, tmp_path / "a-exclude.png"):
        np.testing.assert_array_equal(read_exclusion(source, "a", (60, 80)), expected)
    assert not read_exclusion(tmp_path, "b", (60, 80)).any()
    assert checked_exclusion(text) == text and "a-exclude" in checked_exclusion(tmp_path)
    before = checked_exclusion(tmp_path / "a-exclude.png")
    Image.fromarray(~expected).save(tmp_path / "a-exclude.png")
    assert checked_exclusion(tmp_path / "a-exclude.png") != before
    with pytest.raises(ValueError, match="rectangle 30,5,10,20: give left,top,right,bottom"):
        read_exclusion("30,5,10,20", "a", (60, 80))
    with pytest.raises(ValueError, match="80,0,90,9 lies beside a, which is 80 × 60 px"):
        read_exclusion("80,0,90,9", "a", (60, 80))
    assert checked_exclusion(tmp_path, ["a", "b"]) == checked_exclusion(tmp_path)
    with pytest.raises(ValueError, match=r"a-exclude\.png is called as no scan"):
        checked_exclusion(tmp_path, ["b"])
    with pytest.raises(FileNotFoundError, match="give rectangles"):
        read_exclusion("1,2,3", "a", (60, 80))
    with pytest.raises(ValueError, match="80 × 60 pixels, but a is 20 × 10"):
        read_exclusion(tmp_path, "a", (10, 20))


def test_segment_excludes(tmp_path):
    folder = scans_folder(tmp_path)
    Image.fromarray(cross()).save(folder / "b-mask.png")
    report = segment_folder(folder, StubPredictor(), tmp_path / "out", dpi=254, exclude="0,0,149,999", say=str)
    mask = np.asarray(Image.open(tmp_path / "out" / "b-mask.png")) > 0
    np.testing.assert_array_equal(mask, cross() & (np.arange(300) >= 149))
    assert report.rows[1]["window_cm2"] == pytest.approx(240 * 151 * 0.0001)
    score = read_csv(tmp_path / "out" / "scores.csv")[0]
    assert score["root_iou"] == 1 and score["true_root_area_mm2"] == report.rows[1]["root_area_mm2"]
    with pytest.raises(ValueError, match=r"other settings \(exclude\)"):
        segment_folder(folder, StubPredictor(), tmp_path / "out", dpi=254, exclude="0,0,9,9", say=str)
    (scan,) = load_scans("folder", "all", folder, need_masks=False, exclude="0,0,149,999", limit=1, say=str)
    assert scan.excluded[:, :149].all() and not scan.excluded[:, 149:].any()
