"""Figures: how one is shown and replaced."""

import matplotlib.pyplot as plt
import pytest

from rootsam_lib.lessons import figures


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
