"""The poster's figures follow from its numbers, and from 50.18 minutes rather than 50."""

import pytest

from rootsam_lib.cost import CostModel


def test_the_posters_figures():
    model = CostModel()
    assert round(model.saved) == 8527 and round(model.productivity, 1) == 11.2 and round(model.reduction, 2) == 0.91


def test_fifty_minutes_give_other_figures():
    model = CostModel(manual_minutes=50)
    assert round(model.saved) == 8493 and round(model.productivity, 1) == 11.1


@pytest.mark.parametrize("name", ["images", "wage", "manual_minutes", "assisted_minutes"])
def test_nothing_below_zero(name):
    with pytest.raises(ValueError, match=name):
        CostModel(**{name: 0})
