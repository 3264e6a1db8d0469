"""Every lesson runs once, in order, with changed parameters, and what it records follows them.

The lessons share one folder of runs, as a reader's do: what 03 has trained, 04, 05, 06 and 08 read. Numbers are held
against those of the defaults, which `make notebooks` keeps in data/results/tutorial-quick.json.
"""

import math
from dataclasses import replace

import numpy as np
import papermill
import pytest
from PIL import Image

from rootsam_lib import CHECKOUT
from rootsam_lib.data.datasets import load_parts
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.folders import read_folder
from rootsam_lib.lessons.cost import CostModel
from rootsam_lib.lessons.cracks import crack_images, write_pairs
from rootsam_lib.lessons.parameters import notebook_parameters
from rootsam_lib.lessons.runner import NOTEBOOKS, load_profile
from rootsam_lib.losses import boundary_schedule
from rootsam_lib.results import read_csv, read_json
from rootsam_lib.training.config import stage1
from rootsam_lib.traits import Cleaning, root_length_mm

pytestmark = pytest.mark.slow
RESULTS = CHECKOUT / "data" / "results"
EDITS = "trace,300,300,340,360"
SMALL = {"LIMIT": 4, "STAGE1_EPOCHS": 2, "STAGE2_EPOCHS": 1, "VIEWS": 1}
KNOWN = notebook_parameters(NOTEBOOKS / "03_stage1.ipynb")
TRAINED = {name: value for name, value in load_profile("mine").items() if name in KNOWN} | SMALL
TRAINED["DATA"] = "synthetic"  # in place of own scans


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The lessons' common folder of runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(home, monkeypatch):
    """Execute a lesson with changed parameters; returns the metrics that it records."""
    monkeypatch.setenv("ROOTSAM_HOME", str(home))
    monkeypatch.setenv("ROOTSAM_PROGRESS", "0")

    def execute(number: str, **parameters) -> dict:
        path = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
        papermill.execute_notebook(
            str(path), str(home / path.name), parameters, cwd=str(home), kernel_name="python3",
            progress_bar=False, iopub_timeout=60, extra_arguments=["--log-level=50"],
        )  # fmt: skip
        recorded = read_json(home / "runs" / "quick" / "lessons" / f"{path.stem}.json")
        assert recorded["parameters"].items() >= parameters.items(), "parameters are not recorded"
        return recorded["metrics"]

    return execute


def default(number: str) -> dict:
    """The metrics of a lesson on its defaults."""
    metrics = read_json(RESULTS / "tutorial-quick.json")["metrics"]
    return next(values for name, values in metrics.items() if name.startswith(number))


def stages(home) -> set[str]:
    return {path.parent.name for path in (home / "runs" / "quick").glob("stage*/stage.json")}


def test_defaults_show_what_training_changes():
    tour, evaluation = default("00"), default("05")
    assert tour["stage1_root_iou"] > tour["base_root_iou"]
    assert evaluation["stage2_root_iou"] > evaluation["base_root_iou"]
    assert evaluation["stage2_automatic_root_iou"] > evaluation["base_automatic_root_iou"]


def test_00_on_a_folder_of_small_images_without_resolution(run, tmp_path):
    for i, scan in enumerate(synthetic_scans("train", 6, seed=3, height=384, width=448)):
        Image.fromarray(scan.image).save(tmp_path / f"a_T{i:03d}_L{i:03d}.png")
        Image.fromarray(scan.mask).save(tmp_path / f"a_T{i:03d}_L{i:03d}_mask.png")
    metrics = run("00", DATA="folder", DATA_DIR=str(tmp_path), TEST_SPLIT="test", N_ROOT=1, SMALL_EPOCHS=1)
    assert 0 <= metrics["root_iou"] <= 1 and 0 <= metrics["stage1_root_iou"] <= 1
    assert metrics["trained_share"] == default("00")["trained_share"], "the base model is another one"
    assert metrics["iou_of_two_clicks"] <= 0.5 and metrics["base_real_share"] > 0


def test_a_folder_of_too_few_tubes_is_refused(tmp_path):
    """Three tubes make a split of one tube each: none is left to choose epochs on."""
    for i, scan in enumerate(synthetic_scans("train", 6, seed=3, height=128, width=128)):
        Image.fromarray(scan.image).save(tmp_path / f"a_T{i // 2:03d}_L{i:03d}.png")
        Image.fromarray(scan.mask).save(tmp_path / f"a_T{i // 2:03d}_L{i:03d}_mask.png")
    with pytest.raises(ValueError, match="raise LIMIT, or add scans of other tubes"):
        load_parts("folder", "test", str(tmp_path))


def test_01_a_larger_exponent_draws_deeper(run):
    metrics, plain = run("01", DRAWS=2000, EDT_EXPONENT=3.0), default("01")
    assert metrics["expected_depth_px"] > plain["expected_depth_px"] + 0.2
    shares = [metrics["thin_share"][exponent] for exponent in ("0.0", "1.0", "3.0")]
    assert shares[0] > shares[1] > shares[2] and shares[1] == pytest.approx(plain["thin_share"]["1.0"])
    assert min(plain["click_root_iou"].values()) > 0.1, "a prompt that is hardly answered teaches nothing"


def test_02_teaches_the_loss_that_is_trained():
    given, config = notebook_parameters(NOTEBOOKS / "02_hybrid_loss.ipynb"), stage1()
    for name in ("fn_weight", "fp_weight", "focal_exponent", "ce_weight"):
        assert given[name.upper()] == getattr(config, name), name
    assert given["BOUNDARY_WEIGHT"] == boundary_schedule(10**6, config.boundary_start, config.boundary_step)


def test_02_without_the_focal_exponent_the_loss_is_smaller(run):
    metrics, plain = run("02", STEPS=6, FOCAL_EXPONENT=1.0), default("02")
    assert metrics["wrong_mask_loss"] < plain["wrong_mask_loss"]
    assert metrics["wrong_mask_iou"] == pytest.approx(plain["wrong_mask_iou"]) and not metrics["naive_nan"]


def test_02_shows_what_the_sum_is_for():
    worst, steps = default("02")["worst_root_iou"], default("02")["half_found_at_step"]
    assert worst["hybrid, as trained"] > max(worst["cross-entropy"], worst["focal Tversky, miss 0.5"])
    assert steps["focal Tversky, miss 0.5"] < steps["hybrid, as trained"] < steps["cross-entropy"]
    assert worst["boundary alone"] == 0


def test_03_trains_as_its_parameters_say(run):
    metrics, plain = run("03", **TRAINED, TINY_STEPS=4), default("03")
    # Along the cosine's half wave the rate is at its middle after the first of two epochs, and 0 at the end.
    assert metrics["epochs"] == 2 and metrics["lr_first"] == pytest.approx(5e-4, rel=0.2) and metrics["lr_last"] < 1e-4
    assert metrics["trained_parameters"] == plain["trained_parameters"] + 888_120
    assert plain["lr_first"] == 2e-3 and plain["loss_last"] < plain["loss_first"]
    assert plain["tiny_iou_last"] > plain["tiny_iou_first"] + 0.05, "the loop that is written there learns nothing"


def test_04_goes_on_from_stage_1(run, home):
    before = stages(home)
    metrics, plain = run("04", **TRAINED), default("04")
    assert metrics["epochs"] == 1
    assert metrics["stage1_1024"] != metrics["stage2_1024"]
    assert [name[:6] for name in stages(home) - before] == ["stage2"], "Stage 1 was trained again"
    assert plain["changed_near_seam"] > plain["changed_far_from_seam"], "the context shows where it ends"


def test_05_reads_both_stages(run, home):
    before = stages(home)
    metrics = run("05", **TRAINED, N_ROOT=1, CLICK_PATCHES=3)
    assert stages(home) == before, "a stage was trained again"
    assert len({metrics[f"{name}_root_iou"] for name in ("base", "stage1", "stage2")}) == 3
    assert all(0 <= metrics[f"{name}_automatic_root_iou"] <= 1 for name in ("base", "stage1", "stage2"))


def test_06_clicks_change_the_mask(run, home):
    before = stages(home)
    clicks = {"CLICKS": "300,300,1;600,500,0", "EDITS": EDITS, "SIMULATED_SCANS": 1, "LOOP_SCANS": 3, "LOOP_EPOCHS": 1}
    metrics, plain = run("06", **TRAINED, **clicks), default("06")
    assert plain["obeyed"] == plain["clicks"] + plain["edits"] == 4, "what is shown there does nothing"
    assert metrics["clicks"] == 2 and metrics["after_root_pixels"] != metrics["before_root_pixels"]
    assert stages(home) == before, "the loop's stage would be taken for lesson 04's"
    assert len(list((home / "runs" / "quick" / "loop").glob("stage2-*/stage.json"))) == 1


def test_07_reads_the_measured_minutes(run, home):
    """Those of lesson 06 where it has run, as in this folder, else from the results file that is in the project."""
    metrics, plain = run("07", DRAWS=2000, MANUAL_MINUTES=50.0), default("07")
    assert round(metrics["saved"]) == 8493 and round(plain["saved"]) == 8527
    assert metrics["break_even"] > plain["break_even"] and metrics["saved_low"] < metrics["saved_high"]
    places = (home / "runs" / "quick" / "results" / "simulated_annotator.json", RESULTS / "segroot-annotator.json")
    ways = read_json(next(place for place in places if place.is_file()))["rows"]
    best = [max(at["cl_dice"][0] for at in ways[way].values()) for way in ("trace and remove", "by hand")]
    assert "mixed" in ways or metrics["measured_cl_dice"] == pytest.approx(min(best))
    minutes = {"assisted_minutes": metrics["measured_minutes"], "manual_minutes": metrics["measured_minutes_by_hand"]}
    assert metrics["measured_saved"] == pytest.approx(CostModel(**minutes).saved)


def test_08_cleaning_reaches_the_traits(run):
    metrics = run("08", **TRAINED, SPECK_MM2=1.0, SPUR_DIAMETERS=4.0)
    scans = load_parts("synthetic", "test", "", SMALL["LIMIT"], 0)["test"]
    strict, usual = (
        math.fsum(root_length_mm(s.mask, s.mm_per_px, cleaning=rule) for s in scans)
        for rule in (Cleaning(1.0, 4.0), Cleaning())
    )
    assert metrics["true_length_mm"] == pytest.approx(strict, rel=1e-6) and strict < usual


def test_09_from_a_folder_of_pairs_to_lengths(run, home):
    """One folder, one of its images without any crack: its test part is new, the rest is learned from."""
    images = crack_images(6, np.random.default_rng(5), 256)
    images[0] = replace(images[0], mask=np.zeros_like(images[0].mask))
    folder = write_pairs(home / "walls", images)
    metrics = run("09", DATA_DIR=str(folder), PAIRS=3, EPOCHS=2, INPUT_SCALE=1.0, DETAIL=True)
    assert set(metrics["cl_dice_by_pairs"]) == {"0", "2", "3"} and metrics["total_length_px"] >= 0
    rows = read_csv(home / "runs" / "quick" / "own_images" / "lengths.csv")
    kept_out = {scan.name for scan in read_folder(folder, "test", say=str)}
    assert {row["image"] for row in rows} == kept_out and all("root_length_px" in row for row in rows)
    assert default("09")["few_shot_cl_dice"] > default("09")["base_cl_dice"]


def test_09_refuses_new_images_that_it_learns_from(run, home):
    folder = write_pairs(home / "wall", crack_images(2, np.random.default_rng(6), 128))
    with pytest.raises(papermill.PapermillExecutionError, match=r"wall00 \(pairs\) and wall00 \(new\) are nearly"):
        run("09", DATA_DIR=str(folder), NEW_DIR=str(folder / "images"), EPOCHS=1, INPUT_SCALE=1.0)


def test_a1_replays_the_pretraining(run):
    metrics, plain = run("A1", STEPS=16, SCENES=3), default("A1")
    assert metrics["loss_last"] < metrics["loss_first"] and 0 < metrics["objects"] < plain["objects"]


def test_a2_trains_the_variants_that_are_named(run):
    metrics = run("A2", LIMIT=4, ABLATION_EPOCHS=1, VARIANT_NAMES="uniform prompts")
    assert "uniform prompts_automatic_root_iou_gain" in metrics and "reference_automatic_root_iou" in metrics
    assert not any(key.startswith("seed 1") for key in metrics)
