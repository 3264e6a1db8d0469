"""The pictures of the lessons on training and evaluation: each draws one idea; those for a control also tell it."""

import csv
import itertools
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.morphology import skeletonize

from rootsam_lib.data.augment import augment, augmentation_families, build_augmentation
from rootsam_lib.data.scans import Patch
from rootsam_lib.drawing import COLOURS, HATCHES, MARKERS, NAMES, STAGE2, error_view, overlay
from rootsam_lib.lessons.figures import draw_prompts, error_legend, panels, picture, qualitative, training_curve
from rootsam_lib.metrics import Counts, class_mean_iou, count, dilate, iou
from rootsam_lib.prompts import Prompts, fixed_prompts

# --- 03: Stage 1


def clearest(patches: Iterable[Patch]) -> Patch:
    """The patch whose roots are best seen: root pixels times their mean contrast. Raises ValueError without roots."""
    rooted = [patch for patch in patches if patch.mask.any() and not patch.mask.all()]
    return max(rooted, key=lambda p: p.mask.sum() * abs(p.image[p.mask].mean() - p.image[~p.mask].mean()))


def augmentation_gallery(patch: Patch, seed: int) -> tuple[Figure, str]:
    """What each family of augmentation makes of a patch (above) and of its mask (below), always applied here.

    White: mask before and after; orange: only before; blue: only after.
    """
    size = len(patch.image)
    figure, axes = panels(["as it is", *augmentation_families(size), *[""] * 6], columns=6, size=2.3)
    axes[0].imshow(patch.image)
    axes[6].imshow(patch.mask, cmap="gray")
    stayed = []
    for number, family in enumerate(augmentation_families(size), 1):
        pipeline = build_augmentation(size, (family,))
        for transform in pipeline.transforms:
            transform.p = 1.0  # always, for this picture only
        image, mask = augment(pipeline, patch.image, patch.mask, 10 * int(seed) + number)
        shown = np.zeros((*mask.shape, 3), np.uint8)
        for where, colour in (
            (mask & patch.mask, "white"),
            (patch.mask & ~mask, STAGE2),
            (mask & ~patch.mask, "#3b9cff"),
        ):
            shown = overlay(shown, where, colour, 1.0)
        axes[number].imshow(image)
        axes[6 + number].imshow(shown)
        agree = iou(count(mask, patch.mask))
        axes[6 + number].set_title("mask unmoved" if agree == 1 else f"mask moved: IoU {agree:.2f}", fontsize=10)
        stayed.append(f"{family} {agree:.2f}")
    axes[6].set_title("mask", fontsize=10)
    alt = (
        f"One patch and its mask under five families of augmentation, draw {seed:g}. IoU of the mask with the one "
        f"before: {', '.join(stayed)}; where it is 1 only the image has changed."
    )
    return figure, alt


def encode_once(
    image: np.ndarray,
    maps: np.ndarray,
    answers: Sequence[tuple[Prompts, np.ndarray]],
    seconds: tuple[float, float],
) -> Figure:
    """The feature bank's idea: one image, its kept features, several prompts with their masks, and what each costs.

    maps: features (C, h, w); shown are their first three principal components, as red, green and blue. seconds: of one
    encoder run and of one decoder run, as measured.
    """
    titles = ["one view", "its features: kept", *(f"prompts {n + 1} and mask" for n in range(len(answers)))]
    figure, axes = plt.subplots(1, len(titles) + 1, figsize=(2.7 * (len(titles) + 1), 3.1))
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    axes[0].imshow(image)
    flat = maps.reshape(len(maps), -1).T - maps.mean(axis=(1, 2))
    components = (flat @ np.linalg.svd(flat, full_matrices=False)[2][:3].T).reshape(*maps.shape[1:], -1)
    low, high = np.percentile(components, (2, 98), axis=(0, 1))
    axes[1].imshow(((components - low) / (high - low)).clip(0, 1), interpolation="bilinear")
    for ax, (prompts, mask) in zip(axes[2:], answers, strict=False):
        ax.imshow(overlay(image, mask))
        draw_prompts(ax, prompts, size=25)
    bars = axes[-1].bar(["encode\n(once)", "decode\n(often)"], seconds, color=["#9bb7d0", STAGE2], hatch="", ec="white")
    bars[0].set_hatch("//")
    axes[-1].bar_label(bars, [f"{1000 * s:.0f} ms" for s in seconds])
    axes[-1].set(ylabel="seconds, measured", ylim=(0, 1.2 * max(seconds)))
    return figure


class LiveCurve:
    """While its `with` block trains a stage, the curve of the epochs so far; `draw` leaves the last word.

    folder: where the stage's own folder is made; a thread reads the history.csv there, every `seconds`.
    """

    def __init__(self, folder: Path, title: str, colour: str, seconds: float = 2.0):
        self.folder, self.title, self.colour, self.seconds = Path(folder), title, colour, seconds
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "LiveCurve":
        self.since = time.time()
        figure, ax = plt.subplots(figsize=(12, 0.6))
        ax.text(0, 0.5, f"{self.title}: the curve appears after the first epoch.", va="center")
        ax.set_axis_off()
        data, metadata = picture(figure, f"{self.title}: no epoch is finished yet.")
        self.handle = display(data, metadata=metadata, raw=True, display_id=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def draw(self, history: Sequence[Mapping[str, float]]) -> None:
        """Show this history, one row an epoch, and stop watching."""
        self.__exit__()
        self._show(history)

    def _show(self, history: Sequence[Mapping[str, float]]) -> None:
        data, metadata = picture(training_curve(history, self.title, self.colour), curve_text(history, self.title))
        self.handle.update(data, metadata=metadata, raw=True)

    def _watch(self) -> None:
        shown = self.since
        while not self.done.wait(self.seconds):
            files = {file.stat().st_mtime: file for file in self.folder.glob("stage*-*/history.csv")}
            if files and max(files) > shown:
                shown = max(files)
                with open(files[shown], newline="", encoding="utf-8") as file:
                    self._show([{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)])


def curve_text(history: Sequence[Mapping[str, float]], title: str) -> str:
    """A training curve in words."""
    best = max(history, key=lambda row: row["val_score"])
    steps = sum(after["lr"] < before["lr"] for before, after in itertools.pairwise(history))
    return (
        f"{title}: training loss, validation root IoU and learning rate over {len(history)} epochs. The loss goes from "
        f"{history[0]['loss']:.2f} to {history[-1]['loss']:.2f}; epoch {best['epoch'] + 1:.0f} is kept, with root IoU "
        f"{best['root_iou']:.2f} with points and {best['automatic_root_iou']:.2f} without; the rate was lowered "
        f"{steps} times."
    )


def interrupted_curve(whole: Sequence[float], before: Sequence[float], after: Sequence[float]) -> Figure:
    """The loss of every step of a run in one go, and of the same run interrupted and taken up again."""
    figure, ax = plt.subplots(figsize=(9, 3.2))
    steps = np.arange(1, len(whole) + 1)
    ax.plot(steps, whole, color="0.75", linewidth=7, label="in one go")
    ax.plot(steps[: len(before)], before, "o-", color=COLOURS["base"], label="until the interruption")
    ax.plot(steps[len(before) :], after, "s--", color=STAGE2, label="the same call again")
    ax.axvline(len(before) + 0.5, color="0.4", linestyle=":")
    ax.set(xlabel="step", ylabel="training loss")
    ax.legend()
    return figure


# --- 04: Stage 2


def centre_line_gaps(prediction: np.ndarray, truth: np.ndarray, least: int = 5) -> np.ndarray:
    """Where a true root is interrupted in the prediction: int (H, W), one number a gap, 0 elsewhere.

    A gap is a connected piece of at least `least` px of the true centre line (Lee's thinning) that lies more than 1 px
    outside of the prediction. Both masks bool (H, W). A root that is missed altogether is one gap.
    """
    missed = (skeletonize(truth, method="lee") > 0) & ~dilate(prediction)
    numbers, most = ndimage.label(missed, np.ones((3, 3)))
    kept = np.flatnonzero(ndimage.sum_labels(missed, numbers, range(1, most + 1)) >= least) + 1
    return np.searchsorted(kept, numbers, side="right") * np.isin(numbers, kept)


def connectivity(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """The number of gaps (`centre_line_gaps`), their length and that of the whole true centre line, in px of it."""
    gaps = centre_line_gaps(prediction, truth)
    return int(gaps.max()), int((gaps > 0).sum()), int((skeletonize(truth, method="lee") > 0).sum())


def gap_panels(image: np.ndarray, masks: Mapping[str, np.ndarray], truth: np.ndarray, scan: str) -> tuple[Figure, str]:
    """Each mask against the truth, with a ring around every gap of the true centre line; cut to where roots are."""
    rows, columns = (np.flatnonzero(truth.any(axis)) for axis in (1, 0))
    height = 5.6 * min(max(np.ptp(rows) / max(np.ptp(columns), 1), 0.4), 1.4) if rows.size else 5.6
    told, (figure, axes) = [], plt.subplots(1, len(masks), figsize=(5.6 * len(masks), height + 0.8), squeeze=False)
    for ax, (name, mask) in zip(axes[0], masks.items(), strict=True):
        number, missed, line = connectivity(mask, truth)
        told.append(f"{name}: {number} gaps, {missed:,} of {line:,} px of centre line")
        ax.imshow(error_view(image, mask, truth))
        gaps = centre_line_gaps(mask, truth)
        places = ndimage.center_of_mass(gaps > 0, gaps, range(1, number + 1))
        if places:
            ax.scatter(*np.array(places).T[::-1], s=130, facecolors="none", edgecolors="white", linewidths=1.1)
        ax.set_title(told[-1], fontsize=10)
        ax.set_axis_off()
        if rows.size:
            ax.set(xlim=(max(columns[0] - 16, 0), columns[-1] + 16), ylim=(rows[-1] + 16, max(rows[0] - 16, 0)))
    error_legend(figure)
    return figure, f"Scan {scan} with errors in colour and a ring around every gap. {'; '.join(told)}."


def context_bars(rows: Mapping[tuple[str, int], Mapping[str, float]], labels: Mapping[str, str]) -> Figure:
    """Scores of two models, each shown tiles of several sizes: {(model, px): {score: value}}; labels: what to draw."""
    names, sizes = (list(dict.fromkeys(key[place] for key in rows)) for place in (0, 1))
    figure, axes = plt.subplots(1, len(labels), figsize=(4.2 * len(labels), 3.6))
    for ax, (score, label) in zip(axes, labels.items(), strict=True):
        for number, name in enumerate(names):
            values = [rows[name, size][score] for size in sizes]
            places = np.arange(len(sizes)) + 0.4 * (number - (len(names) - 1) / 2)
            bars = ax.bar(places, values, 0.37, color=COLOURS[name], hatch=HATCHES[name], ec="white", label=NAMES[name])
            ax.bar_label(bars, [f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in values], fontsize=10)
        ax.set_xticks(range(len(sizes)), [f"tiles of {size} px" for size in sizes])
        ax.set_ylabel(label)
        ax.margins(y=0.15)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


# --- 05: evaluation


def by_share(counts: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """Every patch's root IoU by its share of roots, and by its class-mean IoU; counts: pixel counts by model."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, rows in counts.items():
        rooted = [Counts(*c) for c in rows if c[0] + c[2]]
        share, score = [(c.tp + c.fn) / sum(c) for c in rooted], [iou(c) for c in rooted]
        style = {"s": 18, "color": COLOURS[name], "marker": MARKERS[name], "label": NAMES[name]}
        axes[0].scatter(share, score, **style)
        axes[1].scatter(score, [class_mean_iou(c) for c in rooted], **style)
    title = "each patch, by its share of roots"
    axes[0].set(xscale="log", xlabel="share of root pixels in the patch", ylabel="root IoU", title=title)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes[1].set(xlabel="root IoU", ylabel="class-mean IoU", title="the same masks under two definitions")
    axes[0].legend(fontsize=9)
    axes[1].axhline(0.5, color="0.6", linestyle=":")
    place = {"ha": "right", "va": "bottom", "transform": axes[1].get_yaxis_transform()}
    axes[1].text(0.99, 0.5, "finding nothing", color="0.4", **place)
    return figure


def ranked_patch(
    patches: Sequence[Patch], order: Sequence[int], rank: int, predictors: Mapping, protocol
) -> tuple[Figure, str]:
    """The patch of a rank (1 is the first in `order`) as on the poster: prompts and masks of each predictor."""
    patch = patches[order[int(rank) - 1]]
    prompts = fixed_prompts(patch.mask, patch.name, protocol.n_root, protocol.n_soil, protocol.seed)
    masks = {name: predictor(patch.image, prompts) for name, predictor in predictors.items()}
    scores = {name: iou(count(mask, patch.mask)) for name, mask in masks.items()}
    figure = qualitative(patch.image, prompts, masks, patch.mask)
    told = ", ".join(f"{NAMES.get(name, name)} {score:.2f}" for name, score in scores.items())
    figure.suptitle(f"rank {rank:g} of {len(order)}; root IoU: {told}", fontsize=11)
    return figure, f"Patch of rank {rank:g} from the worst: prompts left, masks with errors right. Root IoU: {told}."


# --- A1: nano


def scene_and_objects(scenes: Sequence, titles: Sequence[str]) -> Figure:
    """Drawn scenes above, their objects in colours below; a single one beside its objects."""
    figure, axes = panels([*titles, *["its objects"] * len(scenes)], columns=max(2, len(scenes)), size=3)
    for scene, above, below in zip(scenes, axes, axes[len(scenes) :], strict=False):
        above.imshow(scene.image)
        below.imshow(np.zeros(scene.labels.shape), cmap="gray")
        below.imshow(np.where(scene.labels == 0, np.nan, scene.labels % 20), cmap="tab20", vmin=0, vmax=19)
    return figure


def clicked_strip(image: np.ndarray, truth: np.ndarray, strip: Sequence[tuple[np.ndarray, Sequence, float]]) -> Figure:
    """A mask after each click: strip holds (mask, clicks (x, y, label) so far, IoU)."""
    titles = ["the scene", *(f"{len(c)} click{'s' * (len(c) > 1)}: IoU {i:.2f}" for _, c, i in strip)]
    figure, axes = panels(titles, size=2.6)
    axes[0].imshow(image)
    axes[0].contour(truth, levels=[0.5], colors="white", linewidths=1)
    for ax, (mask, clicks, _) in zip(axes[1:], strip, strict=True):
        ax.imshow(error_view(image, mask, truth))
        rows = np.array(clicks, np.float32)
        draw_prompts(ax, Prompts(rows[:, :2], rows[:, 2].astype(int)))
    error_legend(figure, "too much")
    return figure


# --- A2: ablations


def differences(results: Mapping[str, object], table: str, score: str = "root_iou") -> tuple[Figure, str]:
    """Every variant's paired difference from the reference under one protocol, with its 95 % interval."""
    gains = {name: row[score] for name, row in results["gains"][table].items()}
    figure, ax = plt.subplots(figsize=(9, 0.55 * len(gains) + 1.6))
    shown = [name for name, (_, low, high) in gains.items() if low > 0 or high < 0]
    for place, (name, (value, low, high)) in enumerate(gains.items()):
        style = {"fmt": "D", "color": STAGE2} if name in shown else {"fmt": "o", "color": "0.45"}
        ax.errorbar(value, place, xerr=[[max(value - low, 0)], [max(high - value, 0)]], capsize=4, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(gains)), list(gains))
    ax.set_ylim(len(gains) - 0.5, -0.5)
    ax.set_xlabel(
        f"change of root IoU from the reference, {table}\n(grey circle: interval holds 0; orange: it does not)"
    )
    ax.set_title(f"{results['title']}; {results['images']['tubes']} tubes", loc="left", fontsize=11)
    told = ", ".join(f"{name} {value:+.3f}" for name, (value, _, _) in gains.items())
    alt = f"Change of root IoU from the reference, {table}: {told}. Intervals without 0: {', '.join(shown) or 'none'}."
    return figure, alt
