"""What annotating costs, by hand and with the model's help: the poster's arithmetic, and what it depends on."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class CostModel:
    """Annotating `images` scans by hand, or by correcting the model's masks.

    The defaults are the poster's. Its text rounds the manual time to 50 minutes, but both of its results ($8,527 saved,
    11.2 times the productivity) follow from 50.18 min only; 50 would give $8,493 and 11.1. It counts neither computing
    nor a set-up: those are 0 here unless given. Every field may also be an array: one value a draw (see `draw`).
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
        for name in ("images", "wage", "manual_minutes", "assisted_minutes"):
            if not np.all(np.asarray(getattr(self, name)) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        for name in ("compute_per_image", "training_scans", "training_compute"):
            if not np.all(np.asarray(getattr(self, name)) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")
        share = np.asarray(self.review_share)
        if not np.all((share >= 0) & (share <= 1)):
            raise ValueError(f"review_share is {self.review_share}: it must be at least 0 and at most 1.")

    def cost(self, minutes: float) -> float:
        """$ of a person's time for all images at that many minutes per image."""
        return self.images * minutes / 60 * self.wage

    @property
    def set_up(self) -> float:
        """$ before the first image: the training scans by hand, and the training."""
        return self.training_scans * self.manual_minutes / 60 * self.wage + self.training_compute

    @property
    def assisted_cost(self) -> float:
        """$ for all images with the model's help, set-up included."""
        reviewed = self.cost(self.assisted_minutes) * self.review_share
        return reviewed + self.images * self.compute_per_image + self.set_up

    @property
    def saved(self) -> float:
        """$ saved over all images; negative where the model does not pay."""
        return self.cost(self.manual_minutes) - self.assisted_cost

    @property
    def productivity(self) -> float:
        """How many images are corrected in the time of one by hand."""
        return self.manual_minutes / self.assisted_minutes

    @property
    def reduction(self) -> float:
        """Share of the cost by hand that is saved."""
        return self.saved / self.cost(self.manual_minutes)

    @property
    def saved_per_image(self) -> float:
        """$ saved by one more image, once the model is there."""
        minutes = self.manual_minutes - self.review_share * self.assisted_minutes
        return minutes / 60 * self.wage - self.compute_per_image

    @property
    def break_even(self) -> float:
        """The number of images from which the set-up has paid for itself, not rounded; infinite where it never does.

        Without a set-up it is 0: the first image saves already.
        """
        gain, set_up = np.broadcast_arrays(np.asarray(self.saved_per_image, float), self.set_up)
        images = np.where((set_up > 0) | (gain < 0), np.inf, 0.0)
        pays = gain > 0
        images[pays] = set_up[pays] / gain[pays]
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


def interval(values: np.ndarray, level: float = 0.9) -> tuple[float, float]:
    """The middle `level` of the values: (low, high) quantiles."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


class Swing(NamedTuple):
    """The saving in $ at both ends of one number's range, all others at the model's values."""

    name: str
    at_low: float
    at_high: float


def tornado(model: CostModel, ranges: Mapping[str, Range]) -> list[Swing]:
    """One `Swing` a number, the widest first: which of them to know better before anything else."""
    check_ranges(ranges)
    swings = [
        Swing(name, float(replace(model, **{name: r.low}).saved), float(replace(model, **{name: r.high}).saved))
        for name, r in ranges.items()
    ]
    return sorted(swings, key=lambda swing: -abs(swing.at_high - swing.at_low))


class Measured(NamedTuple):
    """Minutes a person (or a simulated one) took to correct a scan with this project's own model, and clicks."""

    minutes: Range
    clicks: float
    file: Path


def measured_minutes(*places: str | Path) -> Measured | None:
    """The first results file of the clicking lesson that is there, as a range of minutes; None where there is none.

    It holds "minutes_per_scan": {"mean", "low", "high"} and "clicks_per_scan". Raises ValueError when it does not.
    """
    for file in map(Path, places):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            spent = Range(*(float(content["minutes_per_scan"][key]) for key in ("low", "mean", "high")))
            clicks = float(content["clicks_per_scan"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file.name} holds no minutes_per_scan (mean, low, high) and clicks_per_scan ({error!r}): "
                "run the lesson on clicking again."
            ) from None
        check_ranges({"assisted_minutes": spent})
        if spent.low <= 0:
            raise ValueError(f"{file.name} says {spent.low} minutes per scan: it must be more than 0.")
        return Measured(spent, clicks, file)
    return None
