"""The input scale and the gain at which a folder's scans look to a model as those that it learned from."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rootsam_lib.data.folders import Entry
from rootsam_lib.data.images import MAX_MEGAPIXELS, open_image, read_image
from rootsam_lib.metrics import cl_dice, root_widths
from rootsam_lib.predictor import Predictor
from rootsam_lib.results import progress, read_json


def fit_brightness(predictor: Predictor, images: Sequence[np.ndarray]) -> tuple[Predictor, str]:
    """A predictor for scans as bright as these images, uint8 (H, W, 3), and one line that says which, "" if as it was.

    A model finds few roots in scans several times as dark as those it was trained on. Where the mean value is not
    within a factor of 1.5 of `brightness`, all are shown with one gain that brings it there, but cuts off no more than
    a thousandth of the values of the middle one of the images at white. Where one of them is more than four times as
    bright as another, that is said.
    """
    means = [float(image.mean()) for image in images]
    mean = float(np.mean(means)) if images else 0.0
    if not predictor.brightness or not mean:
        return predictor, ""
    lowest, highest = min(means), max(means)
    uneven = highest > 4 * max(lowest, 1)
    doubt = f"Mean values from {lowest:.3g} to {highest:.3g} get one gain: part these scans." if uneven else ""
    if 2 / 3 <= predictor.brightness / mean <= 1.5:
        return predictor, doubt
    wanted = predictor.brightness / mean
    most = 255 / max(1.0, float(np.median([np.percentile(image, 99.9) for image in images])))
    gain = float(f"{min(wanted, max(1.0, most)):.3g}")
    said = f"brightness: a mean of {mean:.3g}, and {predictor.brightness:.3g} in the training"
    said += f": shown to the model {gain:g} times as bright" if gain != 1 else ": shown as it is"
    said += f", no more, for parts of it would turn white (gain {wanted:.3g} goes on)" if gain < 0.9 * wanted else ""
    return (predictor if gain == 1 else replace(predictor, gain=gain)), f"{said}. {doubt}".strip()


def fit_scale(predictor: Predictor, images: Sequence[np.ndarray]) -> tuple[Predictor, str]:
    """A predictor at the input scale that fits the roots of images, uint8 (H, W, 3), and one line that says which.

    A model finds few roots that are several times as wide, for its encoder, as those it was trained on, and what it
    then calls root at one scale it does not at the next. So the search starts, going down from the model's own scale in
    halves, where the masks of two scales agree best (centre-line Dice), or nearly so. The wider roots are the wider is
    what is found, so from there the scale is changed until the mean width of that is `root_width`. A scale within a
    third of the model's own is not told apart from it, and left.
    """
    own, target = predictor.input_scale, predictor.root_width
    if not target:
        return predictor, f"input scale {own:g}: {predictor.model.label} does not say how wide its roots are."
    found: dict[float, list[np.ndarray]] = {}

    def masks(scale: float) -> list[np.ndarray]:
        if scale not in found:
            asked, shown = predictor.at_scale(scale), progress(images, f"at scale {scale:.3g}", "image", leave=False)
            found[scale] = [asked(image) for image in shown]
        return found[scale]

    halves = [own / 2**step for step in range(5)]
    agreement = [
        np.mean([cl_dice(a, b) if a.any() and b.any() else 0 for a, b in zip(masks(one), masks(half), strict=True)])
        for one, half in itertools.pairwise(halves)
    ]
    best = int(np.argmax(np.array(agreement) >= 0.95 * max(agreement)))  # the first of those that are about as good
    scale, low, high = own if best == 0 else halves[best] / 2**0.5, own / 16, own * 4
    for _ in range(6):
        widths = np.concatenate([root_widths(mask) * scale for mask in masks(scale)])
        seen = float(widths.mean()) if widths.size else np.inf  # nothing found: they are more often far too wide
        low, high = (scale, high) if seen < target else (low, scale)
        if abs(np.log2(seen / target)) < 0.07 or high / low < 1.2:
            break
        step = np.clip((target / seen) ** 2, 1 / 3, 2)  # widths seen change with about the root of the scale
        scale = float(scale * step if low < scale * step < high else np.sqrt(low * high))
    if not widths.size:
        return predictor, f"input scale {own:g}: no root was found at any; give the width of a root in px."
    if max(scale / own, own / scale) < 4 / 3:
        return predictor, f"input scale {own:g}: the roots look as wide as those of the training."
    width = f"roots look about {target / scale:.3g} px wide"
    return predictor.at_scale(scale), f"input scale {scale:.3g} in place of {own:g}: {width}."


def fit_to_folder(
    predictor: Predictor,
    entries: Sequence[Entry],
    known: Sequence[Mapping[str, object]] | str | Path = (),
    max_megapixels: float = MAX_MEGAPIXELS,
    say: Callable[[str], object] = print,
    scale: bool = True,
    brightness: bool = True,
    most: int = 3,
    side: int = 2048,
) -> Predictor:
    """The predictor at the gain and at the input scale that fit a folder's images, or at one of the two.

    Up to `most` images, spread over the folder, are looked at: see `fit_brightness`, and `fit_scale`, which gets their
    middle, `side` px at most. entries: of `folders.find_pairs`, or of `ImageFiles`. known: settings of results before,
    the first of which are taken, or the folder of a session or of `segment`, whose settings are taken where it is
    there: what goes on must not change when scans are added. max_megapixels: larger images are not read. say: gets a
    line for what was found. scale, brightness: whether to fit them.
    """
    entries = getattr(entries, "entries", entries)
    if isinstance(known, (str, Path)):
        notes = [Path(known) / name for name in ("session.json", "segment.json")]
        known = [read_json(note) for note in notes if note.is_file()]
    if known:
        before, gain = known[0].get("input_scale", predictor.input_scale), known[0].get("gain", 1.0)
        predictor = replace(predictor, gain=gain) if brightness and gain != 1 else predictor
        return predictor.at_scale(before) if scale and before != predictor.input_scale else predictor
    images, thumbs = [], []
    spread = np.unique(np.linspace(0, len(entries) - 1, most).round().astype(int)).tolist()
    for number in [*spread, *(n for n in range(len(entries)) if n not in spread)]:
        if len(images) == most:
            break
        with contextlib.suppress(ValueError, OSError, MemoryError):  # it fails by itself when its turn comes
            image = read_image(open_image(entries[number].image, max_megapixels))
            thumbs.append(image[::4, ::4].copy())
            top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
            images.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
    if images and brightness:
        predictor, found = fit_brightness(predictor, thumbs)
        if found:
            say(found)
    if images and scale:
        predictor, found = fit_scale(predictor, images)
        say(found)
    return predictor
