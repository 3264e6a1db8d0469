"""The poster's figures follow from its numbers, and from 50.18 minutes rather than 50; the rest by hand."""

import math

import numpy as np
import pytest

from rootsam_lib.lessons.cost import CostModel, by_way, draw, minutes_until

# By hand $10 an image, corrected $2 for each second image, $1 of computing: $8 a scan are saved.
# Set-up: 5 scans by hand at $10, and $30 of training.
HAND = CostModel(
    images=100,
    wage=20.0,
    manual_minutes=30.0,
    assisted_minutes=6.0,
    review_share=0.5,
    compute_per_image=1.0,
    training_scans=5,
    training_compute=30.0,
)


def test_the_posters_figures():
    model = CostModel()
    assert round(model.saved) == 8527 and round(model.productivity, 1) == 11.2 and round(model.reduction, 2) == 0.91
    assert model.set_up == 0 and model.break_even == 0


def test_fifty_minutes_give_other_figures():
    model = CostModel(manual_minutes=50)
    assert round(model.saved) == 8493 and round(model.productivity, 1) == 11.1


def test_a_case_computed_by_hand():
    assert HAND.set_up == 80 and HAND.saved_per_image == 8 and HAND.break_even == 10
    assert HAND.saved == 1000 - (100 + 100 + 80) and HAND.reduction == 0.72


def test_break_even_is_where_nothing_is_saved():
    assert CostModel(**{**vars(HAND), "images": 10}).saved == 0
    never = CostModel(**{**vars(HAND), "compute_per_image": 9.0})
    assert math.isinf(never.break_even) and never.saved < 0
    assert math.isinf(CostModel(assisted_minutes=60.0).break_even)


@pytest.mark.parametrize("name", ["images", "wage", "manual_minutes", "assisted_minutes"])
def test_nothing_below_zero(name):
    with pytest.raises(ValueError, match=name):
        CostModel(**{name: 0})
    with pytest.raises(ValueError, match=name):
        CostModel(**{name: float("nan")})
    with pytest.raises(ValueError, match=name):
        CostModel(**{name: np.array([1.0, -1.0])})


@pytest.mark.parametrize("changes", [{"review_share": 1.1}, {"compute_per_image": -1}, {"training_scans": -1}])
def test_impossible_values_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        CostModel(**changes)


def test_draws_follow_the_triangle_and_repeat_with_the_seed():
    ranges = {"wage": (10, 16, 40), "assisted_minutes": (4.5, 4.5, 4.5)}
    drawn = draw(CostModel(), ranges, 200_000, np.random.default_rng(3))
    assert abs(drawn.wage.mean() - 22) < 0.1  # (10 + 16 + 40) / 3
    assert abs((drawn.wage < 16).mean() - 0.2) < 0.01  # (16 - 10) / (40 - 10)
    assert (drawn.assisted_minutes == 4.5).all() and drawn.images == 700
    # Everything but the wage is certain: the saving is the wage times 700 x 45.68 / 60 hours.
    assert np.allclose(drawn.saved, drawn.wage * 700 * 45.68 / 60)
    again = draw(CostModel(), ranges, 200_000, np.random.default_rng(3))
    assert (again.saved == drawn.saved).all()
    assert drawn.break_even.shape == (200_000,)


def test_ranges_are_checked():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="choose from images"):
        draw(CostModel(), {"wages": (1, 2, 3)}, 5, rng)
    with pytest.raises(ValueError, match="lowest, most likely, highest"):
        draw(CostModel(), {"wage": (3, 2, 1)}, 5, rng)


def test_ways_beside_the_poster():
    def at(value: float) -> dict:
        return {"cl_dice": [value, value - 0.1, value + 0.1], "length_error": [0.2, 0.1, 0.3]}

    hand = {"0": at(0.0), "4.5": at(0.5), "10": at(0.7)}
    results = {"rows": {"trace and remove": {"0": at(0.6), "4.5": at(0.65)}, "by hand": hand}}
    rows = by_way(results, CostModel())
    assert [row[""] for row in rows[:4]] == ["automatic", "corrected", "by hand", "by hand"] and len(rows) == 6
    assert rows[0]["700 scans"] == r"\$0" and rows[1]["700 scans"] == rows[4]["700 scans"] == r"\$840"
    assert rows[1]["centre-line Dice"] == "0.650 (0.550 to 0.750)" and rows[5]["700 scans"] == r"\$9,367"
    assert rows[3]["minutes a scan"] == "10" and rows[3]["error of root length"] == "20% (10% to 30%)"
    assert by_way({"rows": results["rows"] | {"mixed": hand}}, CostModel())[1]["centre-line Dice"].startswith("0.500")
    one_tube = {m: {k: [v[0], None, None] for k, v in at.items()} for m, at in hand.items()}
    assert by_way({"rows": results["rows"] | {"mixed": one_tube}}, CostModel())[1]["centre-line Dice"] == "0.500"
    assert minutes_until(hand, "cl_dice", 0.6) == pytest.approx(7.25) and minutes_until(hand, "cl_dice", 0.5) == 4.5
    assert minutes_until(hand, "cl_dice", 0.0) == 0 and math.isinf(minutes_until(hand, "cl_dice", 0.71))
