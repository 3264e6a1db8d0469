"""The palette for those who see fewer colours: simulated dichromacy and grey print, with colorspacious as reference."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib.colors import to_rgb

from rootsam_lib import drawing
from rootsam_lib.apps.widget import Annotator
from rootsam_lib.lessons import figures
from rootsam_lib.prompts import Prompts

MODELS = dict(zip(("base", "stage1", "stage2"), (drawing.BASE, drawing.STAGE1, drawing.STAGE2), strict=True))
ERRORS = (drawing.FOUND, drawing.MISSED, drawing.FALSE)
SIGHT = ["normal", "protanomaly", "deuteranomaly", "tritanomaly"]  # of severity 100: the anopias


def seen(colour: str, sight: str) -> np.ndarray:
    """A colour as it looks to someone, sRGB of 0 to 1 (Machado, Oliveira & Fernandes 2009)."""
    if sight == "normal":
        return np.array(to_rgb(colour))
    space = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
    return np.clip(cspace_convert(to_rgb(colour), space, "sRGB1"), 0, 1)


def apart(one: str, other: str, sight: str) -> float:
    """Their distance in CAM02-UCS; 1 is about the least that is seen side by side."""
    return float(deltaE(seen(one, sight), seen(other, sight), input_space="sRGB1"))


def lightness(colour: str) -> float:
    """CIE L*, 0 to 100: what a grey print keeps."""
    return float(cspace_convert(to_rgb(colour), "sRGB1", "CIELab")[0])


@pytest.mark.parametrize("sight", SIGHT)
def test_models_stay_apart(sight):
    """The poster's colours; hatches and markers help further."""
    for one, other in itertools.combinations(MODELS.values(), 2):
        assert apart(one, other, sight) >= 10, (one, other)


@pytest.mark.parametrize("sight", SIGHT)
def test_errors_stay_apart_and_stand_out(sight):
    """Only colour tells found, missed and false roots apart, a few pixels wide, on an image in dark grey."""
    for one, other in itertools.combinations(ERRORS, 2):
        assert apart(one, other, sight) >= 25, (one, other)
    for colour in ERRORS:
        assert all(apart(colour, soil, sight) >= 25 for soil in ("#202020", "#404040")), colour


@pytest.mark.parametrize("sight", SIGHT)
def test_changes_between_dates_stay_apart(sight):
    for one, other in itertools.combinations((drawing.FOUND, drawing.GREW, drawing.VANISHED), 2):
        assert apart(one, other, sight) >= 20, (one, other)


@pytest.mark.parametrize("sight", SIGHT)
def test_a_mask_by_itself_has_a_colour_of_its_own(sight):
    others = (*MODELS.values(), *ERRORS, drawing.GREW, drawing.VANISHED, drawing.ROOT_POINT, drawing.SOIL_POINT)
    assert min(apart(drawing.MASK, other, sight) for other in others) >= 10
    assert all(apart(drawing.MASK, soil, sight) >= 25 for soil in ("#0a0a14", "#404040", "#5a4a42"))


@pytest.mark.parametrize("sight", SIGHT)
def test_points_stand_out_from_the_errors_under_them(sight):
    """Root points lie on found or missed roots, soil points on false ones."""
    pairs = [(drawing.ROOT_POINT, drawing.FOUND), (drawing.ROOT_POINT, drawing.MISSED)]
    for point, mask in [*pairs, (drawing.SOIL_POINT, drawing.FALSE)]:
        assert apart(point, mask, sight) >= 10 or apart("#ffffff", mask, sight) >= 10


def test_the_reference_simulation_confuses_red_and_green():
    """Or the tests above would show nothing."""
    assert apart("#8a8a00", "#c06a00", "deuteranomaly") < 0.5 * apart("#8a8a00", "#c06a00", "normal")


def test_in_grey_what_is_close_in_lightness_differs_otherwise():
    for one, other in itertools.combinations(MODELS, 2):
        close = abs(lightness(MODELS[one]) - lightness(MODELS[other])) < 15
        same = drawing.HATCHES[one] == drawing.HATCHES[other]
        assert not (close and same), f"bars of {one} and {other} look the same in grey"


def test_errors_differ_in_grey():
    levels = sorted(lightness(colour) for colour in ERRORS)
    assert min(np.diff(levels)) >= 12 and levels[0] >= 50, "soil is darker"


def test_points_differ_in_shape():
    _, ax = plt.subplots()
    figures.draw_prompts(ax, Prompts(np.array([[1.0, 1], [2, 2]], np.float32), np.array([1, 0])))
    root, soil = (collection.get_paths()[0] for collection in ax.collections)
    plt.close()
    assert len(root.vertices) != len(soil.vertices), "the same marker"
    code = Annotator._esm if isinstance(Annotator._esm, str) else str(Annotator._esm)
    assert "pen.arc(" in code and "pen.lineTo(" in code, "a circle and a cross, as in figures"
