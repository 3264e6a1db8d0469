"""Calibration: factors by hand, their interval, what is refused, and the whole way on the command line."""

import math
import shutil

import numpy as np
import pytest
from PIL import Image
from stub_predictor import StubPredictor

from rootsam_lib.__main__ import main
from rootsam_lib.apps import commands
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.evaluation.calibration import (
    calibrated,
    check_model,
    check_resolution,
    describe_calibration,
    fit_calibration,
    plot_agreement,
    read_calibration,
)
from rootsam_lib.metrics import dilate
from rootsam_lib.results import read_csv, read_json, write_json

MODEL = {"model": "stub", "weights": "0"}


def rows(lengths, diameters):
    return [{"root_length_mm": a, "mean_diameter_mm": b} for a, b in zip(lengths, diameters, strict=True)]


def test_factors_and_intervals():
    measured, true = rows([10, 20, 30, 0], [0.4, 0.5, 0.6, math.nan]), rows([15, 25, 35, 5], [0.2, 0.25, 0.3, 0.9])
    found = fit_calibration(measured, true, ["a", "b", "c", "d"], 0.1, MODEL)
    factor, low, high = found["factors"]["root_length_mm"]
    assert factor == pytest.approx(80 / 60) and 1.1 < low < factor < high < 2.5
    # A mask without roots has no diameter, so its scan says nothing about it.
    assert found["factors"]["mean_diameter_mm"] == pytest.approx([0.5, 0.5, 0.5])
    assert (found["scans"], found["tubes"], found["mm_per_px"], found["model"]) == (4, 4, 0.1, MODEL)
    assert "root_length_mm × 1.333 (1." in describe_calibration(found)
    alone = fit_calibration(measured[:1], true[:1], ["a"], 0.1, MODEL)
    assert alone["factors"]["root_length_mm"][0] == 1.5 and math.isnan(alone["factors"]["root_length_mm"][1])
    assert "no interval: one tube" in describe_calibration(alone)


def test_a_constant_habit_is_taken_off_and_more_scans_narrow_the_interval():
    rng = np.random.default_rng(0)
    true = rng.uniform(50, 500, 40)
    measured = 0.8 * true * rng.lognormal(0, 0.1, 40)
    spans = []
    for k in (2, 5, 20):
        part = [rows(values[:k], np.ones(k)) for values in (measured, true)]
        found = fit_calibration(*part, [str(i) for i in range(k)], 0.1, MODEL)
        factor, low, high = found["factors"]["root_length_mm"]
        spans.append(high - low)
        assert abs((measured[20:] * factor).sum() / true[20:].sum() - 1) < 0.15
    assert spans[2] < spans[1]
    assert found["contrast"] is None  # it was not given
    row = calibrated({"root_length_mm": 100.0, "mean_diameter_mm": None, "mm_per_px": 0.1}, found)
    assert row == {"calibrated_root_length_mm": pytest.approx(100 * factor), "calibrated_mean_diameter_mm": None}


def test_length_follows_the_contrast_from_four_scans_on():
    rng = np.random.default_rng(0)
    true, contrast = rng.uniform(50, 500, 24), rng.uniform(1, 3, 24)
    measured = true * 0.6 * (contrast / 2) ** 0.8  # of faint roots more is missed
    own = [row | {"qc_root_contrast": level} for row, level in zip(rows(measured, np.ones(24)), contrast, strict=True)]
    given = (rows(true, np.ones(24)), [str(i) for i in range(24)], 0.1, MODEL)
    few = fit_calibration(own[:3], given[0][:3], given[1][:3], *given[2:])
    assert few["contrast"] is None
    found = fit_calibration(own[:6], given[0][:6], given[1][:6], *given[2:])
    assert found["contrast"]["slope"] == pytest.approx([-0.8] * 3)
    low, high = found["contrast"]["range"]
    for row, length in zip(own[6:], true[6:], strict=True):
        level = np.clip(row["qc_root_contrast"], low, high)  # nothing is said about other contrasts
        expected = length * (row["qc_root_contrast"] / level) ** 0.8
        assert calibrated(row | {"mm_per_px": 0.1}, found)["calibrated_root_length_mm"] == pytest.approx(expected)
    assert " ^ -0.80" in describe_calibration(found)


def test_what_is_refused():
    good = rows([10, 20], [0.4, 0.5])
    with pytest.raises(ValueError, match="give one of each"):
        fit_calibration(good, good[:1], ["a", "b"], 0.1, MODEL)
    with pytest.raises(ValueError, match="root_length_mm is 0 in all measured"):
        fit_calibration(rows([0, 0], [0.4, 0.5]), good, ["a", "b"], 0.1, MODEL)
    found = fit_calibration(good, good, ["a", "b"], 25.4 / 300, MODEL)
    check_resolution(found, 25.4 / 299.9994)  # as PNG rounds it
    check_resolution({"mm_per_px": None}, None)
    for other in (25.4 / 600, None):
        with pytest.raises(ValueError, match="but the calibration was fitted at 300 dpi"):
            calibrated({"root_length_mm": 1, "mean_diameter_mm": 1, "mm_per_px": other}, found)


def test_a_calibration_belongs_to_a_model_and_is_said(tmp_path):
    good, said = rows([10, 20], [0.4, 0.5]), []
    path = write_json(tmp_path / "calibration.json", fit_calibration(good, good, ["a", "b"], 0.1, MODEL))
    assert read_calibration(path, said.append)["scans"] == 2
    assert len(said) == 1 and "from 2 scans, tubes: 2, at 254 dpi" in said[0]
    with pytest.raises(ValueError, match=r"another model or other settings \(weights\)"):
        check_model(read_json(path), MODEL | {"weights": "1"})
    check_model(read_json(path), MODEL)
    with pytest.raises(FileNotFoundError, match="`calibrate` writes it"):
        read_calibration(tmp_path / "none.json", said.append)
    with pytest.raises(ValueError, match="is no calibration"):
        read_calibration(write_json(path, {"a": 1}), said.append)
    fitted = fit_calibration(good, good, ["a", "b"], 0.1, MODEL)
    for wrong, message in (
        ({"mm_per_px": 0}, "mm_per_px is 0"),
        ({"factors": {"tips": [1, 1, 1]}}, "tips is no trait"),
    ):
        with pytest.raises(ValueError, match=rf"calibration.json is damaged \(ValueError: {message}"):
            read_calibration(write_json(path, fitted | wrong), said.append)


def annotated(folder, count: int, first: int = 0) -> None:
    """Scans of one line each, of which the annotator drew one pixel less on each side than the stub finds."""
    folder.mkdir()
    for i in range(first, first + count):
        truth = np.zeros((120, 200), bool)
        truth[50:54, 20 : 90 + 20 * i] = True
        image = np.repeat(dilate(truth)[..., None], 3, 2).astype(np.uint8) * 255
        Image.fromarray(image).save(folder / f"a_T{i:03d}_L001.png")
        Image.fromarray(truth).save(folder / f"a_T{i:03d}_L001-mask.png")


def test_command_line_from_annotated_scans_to_calibrated_traits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "load_predictor", lambda *_, **__: StubPredictor())
    annotated(tmp_path / "mine", 3)
    annotated(tmp_path / "others", 2, first=3)
    assert main(["calibrate", str(tmp_path / "mine")]) == 2
    assert "mine holds no segment.json: give the folder that segment wrote" in capsys.readouterr().err
    shutil.copytree(tmp_path / "mine", tmp_path / "bare", ignore=shutil.ignore_patterns("*-mask.png"))
    segment_folder(tmp_path / "bare", StubPredictor(), dpi=300, say=str)
    assert main(["calibrate", str(tmp_path / "bare-roots")]) == 2
    assert "bare-roots holds no scores.csv, for no scan had a mask: lay masks" in capsys.readouterr().err
    segment_folder(tmp_path / "mine", StubPredictor(), dpi=300, say=str)
    assert main(["calibrate", str(tmp_path / "mine-roots")]) == 0
    assert "from 3 scans, tubes: 3, at 300 dpi" in capsys.readouterr().out
    file = tmp_path / "mine-roots" / "calibration.json"
    assert main(["calibrate", str(tmp_path / "mine-roots"), "--out", str(tmp_path / "mine")]) == 2
    assert "mine must end in .json" in capsys.readouterr().err
    scores = tmp_path / "mine-roots" / "scores.csv"
    whole = scores.read_text()
    scores.write_text(whole + whole.splitlines(keepends=True)[1])
    assert main(["calibrate", str(tmp_path / "mine-roots")]) == 2
    assert "a_T000_L001 has two rows in scores.csv: take one out" in capsys.readouterr().err
    scores.write_text(whole)
    for name in ("scores.csv", "traits.csv"):
        table = tmp_path / "mine-roots" / name
        text = table.read_text()
        length = str(read_csv(table)[1]["root_length_mm"])
        table.write_text(text.replace(length, f"{length}x"))
        assert main(["calibrate", str(tmp_path / "mine-roots")]) == 2
        assert f"{name}: root_length_mm of a_T001_L001 is '{length}x', no number" in capsys.readouterr().err
        table.write_text(text)
    factors = read_json(file)["factors"]
    assert factors["root_area_mm2"][0] == pytest.approx(4 / 6, rel=0.03) and factors["mean_diameter_mm"][0] < 0.8
    assert len(list((tmp_path / "mine-roots").glob("agreement-*.png"))) == 3
    call = ["segment", str(tmp_path / "others"), "--model", "stub", "--calibration", str(file)]
    assert main([*call, "--dpi", "300"]) == 0
    assert f"calibration from {file}" in (said := capsys.readouterr().err) and "from 3 scans" in said
    assert read_json(file)["contrast"] is None
    for row in read_csv(tmp_path / "others-roots" / "traits.csv"):
        assert row["calibrated_root_area_mm2"] == pytest.approx(row["root_area_mm2"] * factors["root_area_mm2"][0])
    for row in read_csv(tmp_path / "others-roots" / "scores.csv"):
        assert row["root_area_mm2"] / row["true_root_area_mm2"] == pytest.approx(1.5, rel=0.05)
    shutil.rmtree(tmp_path / "others-roots")
    (tmp_path / "model").mkdir()  # a trained stage's folder with its calibration in it
    shutil.copy(file, tmp_path / "model" / "calibration.json")
    assert main(["segment", str(tmp_path / "others"), "--model", str(tmp_path / "model"), "--dpi", "300"]) == 0
    assert f"calibration from {tmp_path / 'model' / 'calibration.json'}" in capsys.readouterr().err
    assert "calibrated_root_area_mm2" in read_csv(tmp_path / "others-roots" / "traits.csv")[0]
    shutil.rmtree(tmp_path / "others-roots")
    (tmp_path / "other.json").write_text("{}")
    assert main(["calibrate", str(tmp_path / "mine-roots"), "--out", str(tmp_path / "other.json")]) == 2
    assert "other.json is there and no calibration" in capsys.readouterr().err
    (tmp_path / "mine-roots" / "calibration.json").write_text("{")  # a damaged one of the folder's own is made anew
    assert main(["calibrate", str(tmp_path / "mine-roots")]) == 0
    assert main([*call, "--dpi", "600"]) == 2  # before any work: no scan has the resolution
    assert "the scan has 600 dpi, but the calibration was fitted at 300 dpi" in capsys.readouterr().err


def test_agreement_figure_holds_the_limits():
    measured, true = [12.0, 19.0, 33.0], [10.0, 20.0, 30.0]
    figure = plot_agreement(measured, true, ["a", "b", "c"], "root_length_mm")
    differences = figure.axes[1]
    drawn = sorted(line.get_ydata()[0] for line in differences.lines if len(line.get_ydata()) == 2)
    spread = 1.96 * np.std([2, -1, 3], ddof=1)
    assert drawn == pytest.approx([4 / 3 - spread, 4 / 3, 4 / 3 + spread])
