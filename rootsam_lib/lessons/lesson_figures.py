"""The pictures of single lessons, by lesson. Each returns the figure, for a slider with its alt text."""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.morphology import skeletonize

from rootsam_lib.data.augment import augment, augmentation_families, build_augmentation
from rootsam_lib.data.scans import Patch, Scan
from rootsam_lib.drawing import BASE, STAGE1, STAGE2, error_view, overlay
from rootsam_lib.lessons.cost import CostModel, Range
from rootsam_lib.lessons.figures import draw_prompts, error_legend, panels
from rootsam_lib.losses import focal_tversky_loss
from rootsam_lib.metrics import count, dilate, iou
from rootsam_lib.prompts import Prompts, edt_map, point_probability, sample_points

# --- 00: the tour


def minirhizotron() -> Figure:
    """A drawing of how the scans are made: a clear tube in the soil, a scanner inside, one window per depth."""
    figure, ax = plt.subplots(figsize=(9, 4.6))
    ax.fill([0, 10, 10, 0], [0, 0, -5, -5], color="#c9b79c")
    ax.plot([0, 10], [0, 0], color="#5f7f2f", linewidth=5)
    top, bottom = np.array([1.2, 0.9]), np.array([6.4, -4.3])
    along = (bottom - top) / np.hypot(*(bottom - top))
    across = np.array([-along[1], along[0]]) * 0.33
    ax.fill(*np.array([top + across, bottom + across, bottom - across, top - across]).T, color="white", ec="0.35", lw=2)
    for number, share in enumerate((0.3, 0.5, 0.7, 0.9)):
        start, end = (top + (share + step) * (bottom - top) for step in (-0.07, 0.07))
        corners = np.array([start + across, end + across, end - across, start - across])
        ax.fill(*corners.T, color=STAGE2 if number == 1 else "#dbe6f2", ec="0.5", alpha=0.85)
        ax.annotate(f"L{number + 1:03d}", corners[0] + [0.12, 0.05], fontsize=9, color="0.25")
    steps = np.linspace(0, 1, 80)
    for end, depth, bend in ((1.9, 2.1, 0.2), (2.6, 3.6, -0.3), (4.3, 4.4, 0.4), (6.6, 4.4, -0.4), (8.6, 3.4, 0.3)):
        x = 5 + (end - 5) * steps + bend * np.sin(6 * steps) * steps
        ax.plot(x, -depth * steps**1.2, color="#f4ecd8", linewidth=2.4)
    notes = {
        "plant and its roots": ((5.1, 0.1), (6.1, 0.9)),
        "clear tube (T), in the soil for years": (top - across * 0.6, (1.9, 1.25)),
        "scanner inside the tube:\none scan per window (L) and date": (top + 0.5 * (bottom - top), (0.15, -4.6)),
    }
    for text, (point, place) in notes.items():
        ax.annotate(text, point, place, fontsize=10, arrowprops={"arrowstyle": "->", "color": "0.2"})
    ax.plot([5, 5, 5.3], [0, 0.7, 1.0], color="#5f7f2f", linewidth=3)
    ax.set(xlim=(0, 10), ylim=(-5, 1.6), xticks=[], yticks=[-5, -2.5, 0], yticklabels=["deep", "", "soil surface"])
    ax.spines[["left", "bottom"]].set_visible(False)
    return figure


def approach(
    image: np.ndarray, feature_map: np.ndarray, prompts: Prompts, mask: np.ndarray, truth: np.ndarray, parts
) -> Figure:
    """The poster's approach, A to D, from a real run of the model; parts: `RootSAM.parameter_table`."""
    figure, axes = panels(["A  image", "B  features of the frozen encoder", "C  prompts", "D  prediction"])
    axes[0].imshow(image)
    axes[1].imshow(feature_map, cmap="magma")
    axes[2].imshow(image)
    draw_prompts(axes[2], prompts)
    axes[3].imshow(error_view(image, mask, truth))
    for column, state, colour in ((1, "frozen", BASE), (2, "trained", STAGE2)):
        # What comes after the fourth part is for video.
        names = "\n".join(f"{row['part']}: {row['parameters']:,}" for row in parts[:4] if row["state"] == state)
        style = {"ha": "center", "va": "top", "color": colour, "transform": axes[column].transAxes}
        axes[column].text(0.5, -0.04, f"{state}\n{names}", **style)
    error_legend(figure)
    return figure


# --- 01: prompts


def _richest_window(mask: np.ndarray, side: int = 128) -> tuple[slice, slice]:
    """The window of up to `side` px that holds the most root."""
    roots = cv2.boxFilter(mask.astype(np.float32), -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    return window_around(np.unravel_index(roots.argmax(), mask.shape)[::-1], mask.shape, side)


def window_around(middle: Sequence[float], shape: tuple[int, int], side: int) -> tuple[slice, slice]:
    """The square window (rows, columns) around a place (x, y), moved rather than cut at the image's edge.

    All of an image that is smaller.
    """
    x, y = middle
    starts = [int(np.clip(at - side / 2, 0, max(0, length - side))) for at, length in zip((y, x), shape, strict=True)]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def hands(
    patch: Patch, clicks: Mapping[str, Prompts], slips: Sequence[float], on_root: Mapping[str, Sequence[float]]
) -> Figure:
    """Close-ups of several annotators' clicks, and the share of clicks on a root by the size of a slip, by aim."""
    rows, columns = _richest_window(patch.mask)
    figure, axes = plt.subplots(1, len(clicks) + 1, figsize=(3.4 * len(clicks) + 4, 3.9))
    for ax, (name, points) in zip(axes, clicks.items(), strict=False):
        ax.imshow(overlay(patch.image, patch.mask, opacity=0.3))
        draw_prompts(ax, points, 22)
        ax.set(title=name, xlim=(columns.start, columns.stop), ylim=(rows.stop, rows.start), xticks=[], yticks=[])
    looks = (("o-", BASE), ("s--", "#5d7d10"), ("^:", STAGE2))
    for (name, shares), (style, colour) in zip(on_root.items(), looks, strict=False):
        axes[-1].plot(slips, shares, style, color=colour, label=f"aim: {name}")
    axes[-1].set(xlabel="slip of the hand (px, SD)", ylabel="clicks still on a root", ylim=(0, 1.03))
    axes[-1].legend(fontsize=10)
    return figure


def prompt_sampling(patch: Patch, exponent: float, n_root: int, n_soil: int, seed: int) -> tuple[Figure, str]:
    """Close-up of the click probability at an exponent, points drawn from it, and how deep those points lie."""
    chance, depth = point_probability(patch.mask, exponent), edt_map(patch.mask)
    many = sample_points(patch.mask, 400, 0, np.random.default_rng(seed), exponent)
    deep = depth[many.points[:, 1].astype(int), many.points[:, 0].astype(int)][many.labels == 1]

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    shown = np.where(patch.mask, chance / chance.max(), np.nan)[_richest_window(patch.mask)]
    axes[0].set_facecolor("black")
    bar = axes[0].imshow(shown, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(bar, ax=axes[0], shrink=0.8, label="chance of a click (1: the likeliest pixel)")
    axes[0].set(title=f"close-up, exponent {exponent:g}", xticks=[], yticks=[])
    axes[1].imshow(patch.image)
    draw_prompts(axes[1], sample_points(patch.mask, n_root, n_soil, np.random.default_rng(seed), exponent))
    axes[1].set(title=f"{n_root} root points (o) and {n_soil} soil points (x)", xticks=[], yticks=[])
    bins = np.arange(0.5, depth.max() + 1.5)
    axes[2].hist(depth[patch.mask], bins, density=True, histtype="step", color="0.35", ls="--", label="all root pixels")
    axes[2].hist(deep, bins, density=True, color=STAGE1, ec="white", label=f"{len(deep)} drawn points")
    axes[2].axvline(deep.mean(), color=STAGE2, lw=2, label=f"their mean: {deep.mean():.1f} px")
    axes[2].set(xlabel="distance to the root's edge (px)", ylabel="share", title="how deep the points lie", ylim=(0, 1))
    axes[2].legend(fontsize=9)
    return figure, (
        f"At exponent {exponent:g}: close-up of the click probability on a root, the patch with drawn points, and a "
        f"histogram of how deep they lie, {deep.mean():.1f} px on average."
    )


# --- 02: loss


def pixel_budget(mask: np.ndarray) -> Figure:
    """The mask, and the same pixels sorted: all root pixels gathered in one corner, in true proportion."""
    share, side = mask.mean(), min(mask.shape)
    titles = [f"{mask.sum():,} root pixels where they are", f"and gathered: {share:.1%} of the area"]
    figure, axes = panels(titles, size=4)
    axes[0].imshow(mask, cmap="gray")
    gathered, edge = np.zeros((side, side), bool), round(side * np.sqrt(share))
    gathered[-edge:, :edge] = True
    axes[1].imshow(gathered, cmap="gray")
    axes[1].text(1.2 * edge, side - edge / 2, "root", color="white", va="center", fontsize=13)
    axes[1].text(side * 0.55, side * 0.35, f"soil: {1 - share:.1%}", color="white", ha="center", fontsize=13)
    return figure


def tversky_pull(
    truth: np.ndarray, wrong: torch.Tensor, window: tuple[slice, slice], fn_weight: float, exponent: float
) -> tuple[Figure, str]:
    """The gradient of focal Tversky on a wrong mask, for a price of a miss; both prices sum to 1.

    truth: bool (H, W); wrong: logits (1, 1, H, W); window: the part to show.
    """
    logits = wrong.clone().requires_grad_()
    target = torch.from_numpy(truth).float()[None, None]
    focal_tversky_loss(logits, target, fn_weight, 1 - fn_weight, exponent).backward()
    pull = -logits.grad[0, 0].numpy()[window]
    most = np.abs(pull).max()
    figure, (ax,) = panels([f"a miss costs {fn_weight:.2f}, an invention {1 - fn_weight:.2f}"], size=4)
    shown = ax.imshow(pull, cmap="PuOr_r", vmin=-most, vmax=most)
    ax.contour(truth[window], levels=[0.5], colors="black", linewidths=1)
    bar = figure.colorbar(shown, ax=ax, shrink=0.8)
    bar.set_ticks([-0.9 * most, 0, 0.9 * most], labels=["less root", "0", "more root"])
    up, down = pull[pull > 0].sum(), -pull[pull < 0].sum()
    return figure, (
        f"With a miss at {fn_weight:.2f} and an invention at {1 - fn_weight:.2f}, exponent {exponent:g}: the pull on a "
        f"wrong mask, {up / (up + down):.0%} of it towards more root, greatest {most:.1e} per pixel."
    )


def film_strip(
    image: np.ndarray, truth: np.ndarray, film: Mapping[str, Sequence[np.ndarray]], stops: Sequence[int], scores
) -> Figure:
    """Masks over time, one row per loss and one column per step; scores: the root IoU of every frame, as film."""
    figure, grid = plt.subplots(len(film), len(stops), figsize=(2.5 * len(stops), 2.65 * len(film)), squeeze=False)
    for row, (name, masks) in enumerate(film.items()):
        for ax, mask, stop, score in zip(grid[row], masks, stops, scores[name], strict=True):
            ax.imshow(error_view(image, mask, truth))
            ax.set(xticks=[], yticks=[], xlabel=f"IoU {score:.2f}")
            if row == 0:
                ax.set_title(f"step {stop}")
        grid[row, 0].set_ylabel(name, fontsize=12)
    error_legend(figure)
    return figure


# --- 03: Stage 1


def clearest(patches: Iterable[Patch]) -> Patch:
    """The patch whose roots are best seen: root pixels times their mean contrast. Raises ValueError without roots."""
    rooted = [patch for patch in patches if patch.mask.any() and not patch.mask.all()]
    return max(rooted, key=lambda p: p.mask.sum() * abs(p.image[p.mask].mean() - p.image[~p.mask].mean()))


def augmentation_gallery(patch: Patch, seed: int) -> tuple[Figure, str]:
    """What each family of augmentation makes of a patch (above) and of its mask (below), always applied here.

    White: mask before and after; orange: only before; blue: only after.
    """
    families = augmentation_families(len(patch.image))
    figure, axes = panels(["as it is", *families, "mask", *[""] * len(families)], columns=len(families) + 1, size=2.3)
    above, below = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    above[0].imshow(patch.image)
    below[0].imshow(patch.mask, cmap="gray")
    agreement = []
    for number, family in enumerate(families, 1):
        pipeline = build_augmentation(len(patch.image), (family,))
        for transform in pipeline.transforms:
            transform.p = 1.0  # always, for this picture only
        image, mask = augment(pipeline, patch.image, patch.mask, 10 * int(seed) + number)
        same = iou(count(mask, patch.mask))
        above[number].imshow(image)
        below[number].imshow(error_view(np.zeros_like(image), mask, patch.mask))
        below[number].set_title("mask unmoved" if same == 1 else f"mask moved: IoU {same:.2f}", fontsize=10)
        agreement.append(f"{family} {same:.2f}")
    return figure, (
        f"One patch and its mask under {len(families)} families of augmentation, draw {seed:g}. IoU of the mask with "
        f"the one before: {', '.join(agreement)}; where it is 1 only the image has changed."
    )


# --- 04: Stage 2


def centre_line_gaps(prediction: np.ndarray, truth: np.ndarray, least: int = 5) -> np.ndarray:
    """Where a true root is interrupted in the prediction: int (H, W), one number per gap, 0 elsewhere.

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
    texts, (figure, axes) = [], panels(list(masks), size=5.6)
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        number, missed, line = connectivity(mask, truth)
        texts.append(f"{name}: {number} gaps, {missed:,} of {line:,} px of centre line")
        ax.set_title(texts[-1], fontsize=10)
        ax.imshow(error_view(image, mask, truth))
        gaps = centre_line_gaps(mask, truth)
        for y, x in ndimage.center_of_mass(gaps > 0, gaps, range(1, number + 1)):
            ax.scatter(x, y, s=130, facecolors="none", edgecolors="white", linewidths=1.1)
        if rows.size:
            ax.set(xlim=(columns[0] - 16, columns[-1] + 16), ylim=(rows[-1] + 16, rows[0] - 16))
    error_legend(figure)
    return figure, f"Scan {scan} with errors in colour and a ring around every gap. {'; '.join(texts)}."


# --- 06: cost


def _dollars(value: float, _: object = None) -> str:
    """Escaped: two bare dollar signs would make matplotlib set what is between them as a formula."""
    return f"\\${value:,.0f}"


def savings(saved: np.ndarray, low: float, high: float, poster: float) -> Figure:
    """The distribution of the saving over the draws, its interval shaded, the poster's figure as a line."""
    figure, ax = plt.subplots(figsize=(9, 3.6))
    ax.hist(saved, 60, color=BASE, alpha=0.85, ec="white", lw=0.3)
    ax.axvspan(low, high, color="0.85", zorder=0, label=f"9 of 10 draws: {_dollars(low)} to {_dollars(high)}")
    ax.axvline(poster, color=STAGE2, lw=2.5, ls="--", label=f"the poster's {_dollars(poster)}")
    ax.set(xlabel="saved over all scans", ylabel="draws")
    ax.xaxis.set_major_formatter(_dollars)
    ax.legend(fontsize=10)
    return figure


def tornado_chart(swings: Mapping[str, tuple[float, float]], ranges: Mapping[str, Range], middle: float) -> Figure:
    """One bar per number, from the saving at its low end to that at its high end, the widest on top."""
    names = list(swings)[::-1]  # matplotlib counts from below
    figure, ax = plt.subplots(figsize=(10, 0.55 * len(names) + 1.5))
    ends = np.array([swings[name] for name in names]).T
    for saved, label, colour, hatch in zip(ends, ("lowest", "highest"), (BASE, STAGE2), ("", "//"), strict=True):
        style = {"color": colour, "hatch": hatch, "ec": "white", "height": 0.7, "label": f"at its {label}"}
        ax.barh(range(len(names)), saved - middle, left=middle, **style)
    spans = [f"{name.replace('_', ' ')}\n{ranges[name].low:,.4g} to {ranges[name].high:,.4g}" for name in names]
    ax.set_yticks(range(len(names)), spans, fontsize=9)
    ax.axvline(middle, color="black", lw=1)
    ax.set_xlabel(f"saved over all scans (line: {_dollars(middle)}, every number at its most likely value)")
    ax.xaxis.set_major_formatter(_dollars)
    ax.legend(loc="lower right", fontsize=10)
    return figure


def break_even_chart(model: CostModel, most: int) -> tuple[Figure, str]:
    """$ by number of scans, by hand and with the model, which starts at its set-up; it has paid where they cross."""
    images, even = np.linspace(0, most, 200), model.break_even
    by_hand = images * model.manual_minutes / 60 * model.wage
    assisted = by_hand - images * model.saved_per_image + model.set_up
    figure, ax = plt.subplots(figsize=(9, 3.8))
    ax.plot(images, by_hand, color=BASE, lw=2, label="by hand")
    ax.plot(images, assisted, "--", color=STAGE2, lw=2.5, label="with the model")
    ax.fill_between(images, assisted, by_hand, where=by_hand > assisted, color=STAGE1, alpha=0.35, label="saved")
    title = f"break-even: {even:,.0f} scans" if even <= most else f"no break-even up to {most:,} scans"
    ax.set(xlabel="scans to annotate", ylabel="cost", xlim=(0, most), ylim=(0, None), title=title)
    ax.yaxis.set_major_formatter(_dollars)
    ax.legend(fontsize=10)
    return figure, f"Costs by number of scans; the model's line starts at ${model.set_up:,.0f} of set-up; {title}."


# --- 07: correction


def session_panels(scan: Scan, before: np.ndarray, after: np.ndarray, clicks: Sequence[Sequence[int]]) -> Figure:
    """The first mask, the mask after the clicks (x, y, label), and what changed, close up around the clicks.

    Cyan and orange differ in every kind of colour vision, and both stand out on soil.
    """
    given = np.array([click[:3] for click in clicks]).reshape(-1, 3)
    window = (slice(0, None), slice(0, None))
    if len(given):
        low, high = given[:, :2].min(axis=0), given[:, :2].max(axis=0)
        window = window_around((low + high) / 2, scan.mask.shape, max(320, (high - low).max() + 80))
    image, truth, first, last = (array[window] for array in (scan.image, scan.mask, before, after))
    figure, axes = panels(["first mask", f"after {len(given)} clicks", "added (cyan), taken off (orange)"], size=4.2)
    axes[0].imshow(error_view(image, first, truth))
    axes[1].imshow(error_view(image, last, truth))
    changed = overlay(image, dilate(last & ~first), "#00e5ff", 1)
    axes[2].imshow(overlay(changed, dilate(first & ~last), "#ff9d00", 1))
    corner = window[1].start, window[0].start
    for ax in axes[1:]:
        draw_prompts(ax, Prompts(given[:, :2] - np.array(corner), given[:, 2]))
    error_legend(figure)
    return figure


# --- 08: traits


def trait_agreement(
    predicted: Sequence[float], true: Sequence[float], result: Mapping[str, float], quantity: str
) -> Figure:
    """A trait of predicted masks against that of the true ones: scatter, and Bland & Altman's plot of differences.

    result: from `traits.agreement` on the same values. quantity: the trait's name with its unit, such as "length (mm)".
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    top = 1.05 * max(predicted.max(), true.max(), 1e-9)
    axes[0].plot([0, top], [0, top], color="0.6", linestyle=":", label="equal")
    axes[0].scatter(true, predicted, color=STAGE2)
    title = f"R² {result['r2']:.2f} to the dotted line\n{result['r2_fitted']:.2f} to a fitted one"
    axes[0].set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}", xlim=(0, top), ylim=(0, top), title=title)
    axes[0].legend(loc="upper left")
    axes[1].scatter((predicted + true) / 2, predicted - true, color=STAGE2)
    axes[1].axhline(0, color="0.6", linestyle=":")
    axes[1].axhline(result["bias"], color="black", label="bias")
    axes[1].axhspan(result["bias_low"], result["bias_high"], color="black", alpha=0.12, label="its 95 % interval")
    axes[1].axhline(result["limits_low"], color="black", ls="--", lw=1, label="95 % of differences")
    axes[1].axhline(result["limits_high"], color="black", ls="--", lw=1)
    title = f"bias {result['relative_bias']:+.0%} of the true mean\n{result['scans']} scans of {result['tubes']} tubes"
    axes[1].set(xlabel=f"mean of both, {quantity}", ylabel=f"predicted - true {quantity}", title=title)
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=9)  # below: lines fill the axes
    return figure


# --- A1: nano


def scene_and_objects(scenes: Sequence, titles: Sequence[str]) -> Figure:
    """Drawn scenes above, their objects in colours below; a single one beside its objects."""
    figure, axes = panels([*titles, *["its objects"] * len(scenes)], columns=max(2, len(scenes)), size=3)
    for scene, above, below in zip(scenes, axes, axes[len(scenes) :], strict=False):
        above.imshow(scene.image)
        below.imshow(np.ma.masked_equal(scene.labels, 0) % 20, cmap=plt.get_cmap("tab20").with_extremes(bad="black"))
    return figure


def clicked_strip(image: np.ndarray, truth: np.ndarray, strip: Sequence[tuple[np.ndarray, Sequence, float]]) -> Figure:
    """A mask after each click: strip holds (mask, clicks (x, y, label) so far, IoU)."""
    titles = ["the scene", *(f"clicks: {len(clicks)}, IoU {score:.2f}" for _, clicks, score in strip)]
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
    shown = [name for name, (_, low, high) in gains.items() if low > 0 or high < 0]
    figure, ax = plt.subplots(figsize=(9, 0.55 * len(gains) + 1.6))
    for place, (name, (value, low, high)) in enumerate(gains.items()):
        style = {"fmt": "D", "color": STAGE2} if name in shown else {"fmt": "o", "color": "0.45"}
        ax.errorbar(value, place, xerr=np.nan_to_num([[value - low], [high - value]]), capsize=4, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(gains)), list(gains))
    ax.invert_yaxis()
    ax.set_xlabel(
        f"change of root IoU from the reference, {table}\n(grey circle: interval holds 0; orange: it does not)"
    )
    ax.set_title(f"{results['title']}; {results['images']['tubes']} tubes", loc="left", fontsize=11)
    values = ", ".join(f"{name} {value:+.3f}" for name, (value, _, _) in gains.items())
    alt = f"Change of root IoU from the reference, {table}: {values}."
    return figure, f"{alt} Intervals without 0: {', '.join(shown) or 'none'}."
