"""Figures: what is measured for them, and how one is shown and replaced."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rootsam_lib.lessons import figures
from rootsam_lib.lessons.lesson_figures import centre_line_gaps, window_around


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
    assert "epoch 2 is kept" in shown[1][1] and "lowered 1 times" in shown[1][1]
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


def test_gaps_of_a_broken_root():
    whole = np.zeros((40, 240), bool)
    whole[18:21, 20:220] = True
    broken = whole.copy()
    for start, end in ((60, 63), (115, 125), (180, 200)):  # the first is too short to count
        broken[:, start:end] = False
    gaps = centre_line_gaps(broken, whole)
    # A pixel at each end still counts as found.
    assert np.bincount(gaps.ravel()).tolist() == [gaps.size - 26, 8, 18]
    assert centre_line_gaps(whole, whole).max() == 0
    assert centre_line_gaps(whole & False, whole).max() == 1 and centre_line_gaps(whole, whole & False).max() == 0


def test_a_window_is_moved_not_cut_at_the_edge():
    assert window_around((995, 409), (1024, 1024), 320) == (slice(249, 569), slice(704, 1024))
    assert window_around((5, 5), (1024, 1024), 320) == (slice(0, 320), slice(0, 320))
    assert window_around((50, 50), (200, 100), 320) == (slice(0, 320), slice(0, 320)), "the whole of a small image"
