"""What annotating costs, by hand and with the model's help: the poster's arithmetic, and what it depends on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rootsam_lib.results import read_json, shown


@dataclass(frozen=True)
class CostModel:
    """Annotating `images` scans by hand, or by correcting the model's masks.

    The defaults are the poster's. Its text rounds the manual time to 50 minutes, but both of its results ($8,527 saved,
    11.2 times the productivity) follow from 50.18 min only; 50 would give $8,493 and 11.1. It counts neither computing
    nor a set-up: those are 0 here unless given. Every field may also be an array: one value per draw (see `draw`).
    Raises ValueError for a value that cannot be.
    """

    images: float = 700
    wage: float = 16.0  # $ per hour
    manual_minutes: float = 50.18  # per image, by hand
    assisted_minutes: float = 4.5  # per image that is reviewed: correcting the model's mask
    review_share: float = 1.0  # of the images are reviewed; the others are taken as the model drew them
    compute_per_image: float = 0.0  # $ for the model's own work on an image
    training_scans: float = 0.0  # annotated by hand before there is a model
    training_compute: float = 0.0  # $ for the training

    def __post_init__(self) -> None:
        for field in fields(self):
            values = np.asarray(getattr(self, field.name), float)
            positive = field.name in ("images", "wage", "manual_minutes", "assisted_minutes")
            most = 1 if field.name == "review_share" else math.inf
            if not np.all((values > 0 if positive else values >= 0) & (values <= most) & np.isfinite(values)):
                span = "greater than 0" if positive else "0 or more"
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}: give {span}{', at most 1' if most == 1 else ''}."
                )

    def cost(self, minutes: float) -> float:
        """$ of a person's time for all images at that many minutes per image."""
        return self.images * minutes / 60 * self.wage

    @property
    def set_up(self) -> float:
        """$ before the first image: the training scans by hand, and the training."""
        return self.training_scans * self.manual_minutes / 60 * self.wage + self.training_compute

    @property
    def saved_per_image(self) -> float:
        """$ saved by one more image, once the model is there."""
        minutes = self.manual_minutes - self.review_share * self.assisted_minutes
        return minutes / 60 * self.wage - self.compute_per_image

    @property
    def saved(self) -> float:
        """$ saved over all images, set-up included; negative where the model does not pay."""
        return self.images * self.saved_per_image - self.set_up

    @property
    def reduction(self) -> float:
        """Share of the cost by hand that is saved."""
        return self.saved / self.cost(self.manual_minutes)

    @property
    def productivity(self) -> float:
        """How many images are corrected in the time of one by hand."""
        return self.manual_minutes / self.assisted_minutes

    @property
    def break_even(self) -> float:
        """The number of images from which the set-up has paid for itself, not rounded; infinite where it never does.

        Without a set-up it is 0: the first image saves already.
        """
        gain, set_up = np.broadcast_arrays(np.asarray(self.saved_per_image, float), self.set_up)
        images = np.where((set_up > 0) | (gain < 0), np.inf, 0.0)
        np.divide(set_up, gain, out=images, where=gain > 0)
        return images if images.ndim else float(images)


class Range(NamedTuple):
    """What a number may be: its least, most likely and greatest value (a triangular distribution)."""

    low: float
    likely: float
    high: float


def check_ranges(ranges: Mapping[str, Range]) -> None:
    """Raises ValueError for a name that `CostModel` lacks, and for values that are not low <= likely <= high."""
    known = [field.name for field in fields(CostModel)]
    for name, (low, likely, high) in ranges.items():
        if name not in known:
            raise ValueError(f"range {name!r} is of no number in the cost model: choose from {', '.join(known)}.")
        if not (low <= likely <= high and math.isfinite(high - low)):
            raise ValueError(f"range {name} is {low}, {likely}, {high}: write lowest, most likely, highest.")


def draw(model: CostModel, ranges: Mapping[str, Range], draws: int, rng: np.random.Generator) -> CostModel:
    """The model with every number in `ranges` replaced by `draws` independent draws: its results are arrays (draws,).

    Numbers without a range keep the model's value. The same seed gives the same draws.
    """
    check_ranges(ranges)
    if draws < 1:
        raise ValueError(f"draws is {draws}: it must be 1 or more.")
    drawn = {
        name: rng.triangular(*span, draws) if span.high > span.low else np.full(draws, float(span.likely))
        for name, span in ranges.items()
    }
    return replace(model, **drawn)


def tornado(model: CostModel, ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    """The saving in $ at both ends of each number's range, all others at the model's values; the widest first."""
    check_ranges(ranges)
    swings = {
        name: tuple(float(replace(model, **{name: end}).saved) for end in (span.low, span.high))
        for name, span in ranges.items()
    }
    return dict(sorted(swings.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def measured_minutes(*places: Path) -> tuple[Range, float, Path]:
    """Minutes and clicks per scan, and their file: from the first of these results of `annotator.simulate` that exists.

    Raises FileNotFoundError when there is none, and ValueError when it does not hold them.
    """
    file = next((place for place in places if place.is_file()), places[0])
    results = read_json(file)
    try:
        minutes = Range(*(float(results["minutes_per_scan"][key]) for key in ("low", "mean", "high")))
        clicks = float(results["clicks_per_scan"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{shown(file)} holds no minutes_per_scan (low, mean, high) and clicks_per_scan: run lesson 07 again."
        ) from None
    check_ranges({"assisted_minutes": minutes})
    return minutes, clicks, file
