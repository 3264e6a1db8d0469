"""What annotating costs, by hand and with the model's help: the poster's arithmetic, and what it depends on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from rootsam_lib.results import cell


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


def draw(
    model: CostModel, ranges: Mapping[str, tuple[float, float, float]], draws: int, rng: np.random.Generator
) -> CostModel:
    """The model with every number in `ranges` replaced by `draws` independent draws: its results are arrays (draws,).

    ranges: least, most likely and greatest value of fields of `CostModel` (a triangular distribution). Numbers without
    a range keep the model's value. Raises ValueError for an unknown name, and for values that are not in that order.
    """
    drawn = {}
    for name, (low, likely, high) in ranges.items():
        if name not in vars(model):
            raise ValueError(f"range {name!r} is of no number in the cost model: choose from {', '.join(vars(model))}.")
        if not low <= likely <= high:
            raise ValueError(f"range {name} is {low}, {likely}, {high}: write lowest, most likely, highest.")
        drawn[name] = rng.triangular(low, likely, high, draws) if low < high else np.full(draws, float(low))
    return replace(model, **drawn)


def by_way(results: Mapping, poster: CostModel) -> list[dict[str, str]]:
    """A table's rows: what a scan costs and is worth, automatic, corrected and by hand, the poster's figures beside.

    results: of `evaluation.clicks.simulate`; the corrected rows are of its way "mixed", or "trace and remove" where no
    model was asked. Dollars are of a person's time, for all of the poster's images at its wage.
    """
    ways, asked = results["rows"], []
    corrected = next(way for way in ("mixed", "trace and remove") if way in ways)
    for way, what in ((corrected, "corrected"), ("by hand", "by hand")):
        for minutes, at in ways[way].items():
            if float(minutes) or way == corrected:
                scores = cell(at["cl_dice"]), cell(at["length_error"], form=".0%")
                asked.append((what if float(minutes) else "automatic", float(minutes), *scores))
    for how, minutes in (("corrected", poster.assisted_minutes), ("by hand", poster.manual_minutes)):
        asked.append((f"the poster's people, {how}", minutes, "not reported", "not reported"))
    names = ("", "minutes a scan", "centre-line Dice", "error of root length", f"{poster.images:,.0f} scans")
    told = ((what, f"{m:g}", *scores, f"\\${poster.cost(m):,.0f}") for what, m, *scores in asked)
    return [dict(zip(names, row, strict=True)) for row in told]


def minutes_until(curve: Mapping[str, Mapping], score: str, goal: float) -> float:
    """The minutes after which a way's score reaches a goal, on a straight line between two measured minutes; infinite
    where it does not reach it in those that were measured."""
    minutes = [float(at) for at in curve]
    values = np.maximum.accumulate([at[score][0] for at in curve.values()])
    if values[-1] < goal:
        return math.inf
    after = int(np.argmax(values >= goal))
    around = slice(max(after - 1, 0), after + 1)
    return float(np.interp(goal, values[around], minutes[around]))
