"""Figures: how one is shown and replaced."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch
from PIL import ImageColor

from rootsam_lib import drawing
from rootsam_lib.lessons import figures
from rootsam_lib.prompts import Prompts


@pytest.fixture
def shown(monkeypatch):
    """What reaches the page: "new" or "again", with the alt text."""
    events = []

    class Handle:
        def update(self, data, **_):
            events.append(("again", data["text/plain"]))

    def display(data, **_):
        events.append(("new", data["text/plain"]))
        return Handle()

    monkeypatch.setattr(figures, "display", display)
    return events


def test_a_live_curve_grows_in_one_place(shown):
    draw = figures.live_curve("Stage 1")
    row = {"loss": 0.5, "lr": 1e-3, "root_iou": 0.2, "automatic_root_iou": 0.1, "val_score": 0.15}
    draw([row | {"epoch": 0}])
    draw([row | {"epoch": 0}, row | {"epoch": 1, "val_score": 0.3, "lr": 5e-4}])
    assert [event for event, _ in shown] == ["new", "again"]
    assert "over 1 epochs" in shown[0][1] and "over 2 epochs" in shown[1][1]
    assert "epoch 2 is kept" in shown[1][1] and "from 1.0e-03 to 5.0e-04" in shown[1][1]
    assert not plt.get_fignums(), "a figure stays open"


def test_a_moved_slider_replaces_the_picture(shown):
    control = figures.slider("points", 50, 0, 40, 1)
    figures.interactive(lambda n: (plt.figure(figsize=(1, 1)), f"a picture of {n:g} points"), n=control)
    control.value = 3
    texts = ["[slider] points: 40, from 0 to 40", "a picture of 40 points", "a picture of 3 points"]
    assert [text for _, text in shown] == texts and shown[-1][0] == "again"


def test_an_alt_text_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="says too little"):
        figures.show(plt.figure(), "a figure")
    plt.close("all")


IMAGE = np.full((40, 60, 3), 90, np.uint8)
POINTS = Prompts(np.array([[5.0, 6], [20, 30]], np.float32), np.array([1, 0]))


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_what_models_call_root_is_in_their_colours():
    mask = np.zeros((40, 60), bool)
    mask[10:20] = True
    figure = figures.found_roots(IMAGE, {"base": mask, "stage2": ~mask})
    for ax, where, colour in zip(figure.axes[1:], (mask, ~mask), (drawing.BASE, drawing.STAGE2), strict=True):
        shown = ax.images[0].get_array()
        assert (shown[where] == ImageColor.getrgb(colour)).all() and (shown[~where] == 90).all()
    assert legend_of(figure) == ["Base model", "RootSAM (Stage 2)"]
    plt.close(figure)


@pytest.mark.parametrize("drawn", [1, 2])
def test_a_legend_names_the_marks_that_are_drawn_and_no_others(drawn):
    figure, (ax,) = figures.panels(["clicks"])
    figures.draw_prompts(ax, Prompts(POINTS.points[:drawn], POINTS.labels[:drawn]))
    figures.error_legend(figure, more={"added": drawing.GREW})
    assert legend_of(figure) == ["found", "missed", "false root", "added", "root point", "soil point"][: 4 + drawn]
    plt.close(figure)


def test_the_approach_shows_points_going_in_and_a_mask_coming_out():
    figure = figures.approach(IMAGE, np.zeros((5, 7)), POINTS, IMAGE)
    titles = [ax.get_title() for ax in figure.axes]
    assert [title[0] for title in titles] == ["A", "B", "D", "C"] and len(figure.axes[3].collections) == 2
    assert set(legend_of(figure)) == {"found", "missed", "false root", "root point", "soil point"}
    arrows = [artist for artist in figure.artists if isinstance(artist, FancyArrowPatch)]
    assert len(arrows) == 4 and all(arrow.get_mutation_scale() > 0 for arrow in arrows)
    plt.close(figure)


def test_the_control_tells_its_numbers_and_changes_their_parts():
    wanted = np.zeros((40, 60), bool)
    wanted[10:20] = True
    row = {name: [0.5, 0.4, 0.6] for name in ("true_points", "moved_points", "no_points")}
    answers = {"on the wanted roots": (POINTS, wanted), "no point": (None, ~wanted)}
    figure = figures.control_picture(IMAGE, np.ones_like(wanted), wanted, answers, {"base": row, "stage2": row})
    assert "1.00" in figure.axes[0].get_title() and "0.00" in figure.axes[1].get_title()
    assert [bar.get_height() for bar in figure.axes[2].patches] == [0.5] * 6
    unwanted = "unwanted root, rightly left out"
    assert legend_of(figure) == ["found", "missed", "not asked for, or false", unwanted, "root point", "soil point"]
    assert (figure.axes[0].images[0].get_array()[~wanted] == ImageColor.getrgb(figures.UNWANTED)).all()
    plt.close(figure)
    figure = figures.changes({"then": IMAGE // 2, "now": IMAGE}, wanted, ~wanted, wanted & False)
    assert legend_of(figure) == ["on both dates", "vanished", "grew"]
    expected = drawing.error_view(IMAGE, wanted | ~wanted, wanted, drawing.CHANGES)
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), expected)
    plt.close(figure)


@pytest.mark.parametrize("colours", [drawing.ERRORS, drawing.CHANGES])
def test_a_view_of_two_masks_has_the_colours_of_its_legend(colours):
    rows = np.arange(3).repeat(4).reshape(3, 4)  # in both masks, in the truth alone, in the prediction alone
    view = drawing.error_view(np.zeros((3, 4, 3), np.uint8), rows != 1, rows != 2, colours)
    figure, _ = figures.panels(["two masks"])
    figures.error_legend(figure, colours=colours)
    (legend,) = figure.legends
    named = [np.multiply(patch.get_facecolor()[:3], 255 * 0.95) for patch in legend.get_patches()]
    np.testing.assert_allclose(view[:, 0], named, atol=1)
    plt.close(figure)
