"""The pictures of single lessons: each draws one idea, and returns the figure (for a slider, with its alt text)."""

from collections.abc import Callable, Mapping, Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rootsam_lib.data.scans import Patch
from rootsam_lib.drawing import BASE, STAGE1, STAGE2, error_view, overlay
from rootsam_lib.lessons.cost import Range, Swing
from rootsam_lib.lessons.figures import draw_prompts, error_legend, panels
from rootsam_lib.losses import focal_tversky_loss
from rootsam_lib.metrics import count, iou
from rootsam_lib.prompts import Prompts, edt_map, fixed_prompts, point_probability, sample_points

# --- 00: the approach


def approach(
    image: np.ndarray, feature_map: np.ndarray, prompts: Prompts, mask: np.ndarray, truth: np.ndarray, parts
) -> Figure:
    """The poster's approach, A to D, from a real run of the model; parts: `RootSAM.parameter_table`.

    Frozen parts are hatched blue, trained ones plain orange, each with its number of parameters.
    """
    figure = plt.figure(figsize=(13.5, 4.4), layout="none")
    titles = ("A  image", "", "C  prompts", "D  prediction")
    axes = [figure.add_axes([left, 0.14, 0.19, 0.72]) for left in (0.005, 0.235, 0.545, 0.8)]
    axes[1].set_position([0.225, 0.02, 0.29, 0.96])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_axis_off()
    axes[0].imshow(image)
    axes[2].imshow(image)
    draw_prompts(axes[2], prompts)
    axes[3].imshow(error_view(image, mask, truth))

    model = axes[1]
    model.set(xlim=(0, 10), ylim=(0, 10))
    model.text(5, 9.55, "B  model", ha="center", va="center", fontsize=12)
    inset = model.inset_axes([0.06, 0.36, 0.36, 0.25])
    inset.imshow(feature_map, cmap="magma", aspect="auto")
    inset.set_axis_off()
    model.text(2.4, 3.2, "features", ha="center", va="center", fontsize=10.5)
    width, places = 4.3, ((0.3, 6.9), (0.3, 0.7), (5.4, 5.4), (5.4, 2.2))
    for row, (x, y) in zip(parts, places, strict=False):  # what comes after the fourth is for video
        trained = row["state"] == "trained"
        style = {"facecolor": "#fbd9cf" if trained else "#d5e3f0", "edgecolor": STAGE2 if trained else BASE, "lw": 1.6}
        box = FancyBboxPatch((x, y), width, 1.75, boxstyle="round,pad=0.08", hatch="" if trained else "///", **style)
        model.add_patch(box)
        text = f"{str(row['part']).removeprefix('image ')}\n{row['parameters']:,}\n{row['state']}"
        note = model.text(x + width / 2, y + 0.87, text, ha="center", va="center", fontsize=10.5, linespacing=1.1)
        note.set_bbox({"facecolor": style["facecolor"], "edgecolor": "none", "pad": 1.5})
    for left, right in ((0.197, 0.228), (0.512, 0.543), (0.738, 0.797)):
        figure.add_artist(
            plt.matplotlib.patches.FancyArrowPatch(
                (left, 0.5),
                (right, 0.5),
                transform=figure.transFigure,
                arrowstyle="-|>",
                mutation_scale=18,
                color="0.2",
            )
        )
    error_legend(figure)
    return figure


def prompted(
    patch: Patch, answer: Callable[[Prompts], np.ndarray], seed: int, n_root: float, n_soil: float
) -> tuple[Figure, str]:
    """The patch with its fixed prompts and the mask, bool (H, W), that `answer` gives to them."""
    prompts = fixed_prompts(patch.mask, patch.name, int(n_root), int(n_soil), seed)
    mask = answer(prompts)
    score = iou(count(mask, patch.mask))
    figure, axes = panels([f"{int(n_root)} + {int(n_soil)} points", f"prediction: root IoU {score:.2f}"], size=4.4)
    axes[0].imshow(patch.image)
    draw_prompts(axes[0], prompts)
    axes[1].imshow(error_view(patch.image, mask, patch.mask))
    error_legend(figure)
    alt = f"With {int(n_root)} root and {int(n_soil)} soil points the predicted mask has a root IoU of {score:.2f}."
    return figure, alt


# --- 01: prompts


def _close_up(mask: np.ndarray, side: int = 128) -> tuple[slice, slice]:
    """The window of up to `side` px that holds the most root."""
    place = cv2.boxFilter(mask.astype(np.float32), -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    place = np.unravel_index(place.argmax(), mask.shape)
    starts = [int(np.clip(at - side // 2, 0, max(n - side, 0))) for at, n in zip(place, mask.shape, strict=True)]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def hands(
    patch: Patch, clicks: Mapping[str, Prompts], slips: Sequence[float], on_root: Mapping[str, Sequence[float]]
) -> Figure:
    """Close-ups of several annotators' clicks, and the share of clicks on a root by the size of a slip, by aim."""
    view = _close_up(patch.mask)
    figure, axes = plt.subplots(1, len(clicks) + 1, figsize=(3.4 * len(clicks) + 4, 3.9))
    for ax, (name, points) in zip(axes, clicks.items(), strict=False):
        ax.imshow(overlay(patch.image, patch.mask, opacity=0.3))
        draw_prompts(ax, points, 22)
        ax.set(title=name, xlim=(view[1].start, view[1].stop), ylim=(view[0].stop, view[0].start), xticks=[], yticks=[])
    looks = (("o-", BASE), ("s--", "#5d7d10"), ("^:", STAGE2))
    for (name, shares), (style, colour) in zip(on_root.items(), looks, strict=False):
        axes[-1].plot(slips, shares, style, color=colour, label=f"aim: {name}")
    axes[-1].set(xlabel="slip of the hand (px, SD)", ylabel="clicks still on a root", ylim=(0, 1.03))
    axes[-1].legend(fontsize=10)
    return figure


def prompt_sampling(patch: Patch, exponent: float, n_root: int, n_soil: int, seed: int) -> tuple[Figure, str]:
    """Close-up of the click probability at an exponent, points drawn from it, and how deep those points lie."""
    chance, depth = point_probability(patch.mask, exponent), edt_map(patch.mask)
    view = _close_up(patch.mask)
    many = sample_points(patch.mask, 400, 0, np.random.default_rng(seed), exponent)
    deep = depth[many.points[:, 1].astype(int), many.points[:, 0].astype(int)][many.labels == 1]

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    shown = np.where(patch.mask, chance / chance.max(), np.nan)[view]
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
    alt = (
        f"At exponent {exponent:g}: close-up of the click probability on a root, the patch with drawn points, and a "
        f"histogram of how deep they lie, {deep.mean():.1f} px on average."
    )
    return figure, alt


# --- 02: loss


def pixel_budget(mask: np.ndarray) -> Figure:
    """The mask, and the same pixels sorted: all root pixels gathered in one corner, in true proportion."""
    share, side = mask.mean(), min(mask.shape)
    figure, axes = panels(
        [f"{mask.sum():,} root pixels where they are", f"and gathered: {share:.1%} of the area"], size=4
    )
    axes[0].imshow(mask, cmap="gray")
    gathered = np.zeros((side, side), bool)
    edge = round(side * np.sqrt(share))
    gathered[-edge:, :edge] = True
    axes[1].imshow(gathered, cmap="gray")
    axes[1].annotate("root", (edge, side - edge / 2), (edge + side * 0.12, side - edge), color="white", va="center",
                     arrowprops={"arrowstyle": "->", "color": "white"})  # fmt: skip
    axes[1].text(side * 0.55, side * 0.35, f"soil: {1 - share:.1%}", color="white", ha="center", fontsize=13)
    return figure


def tversky_pull(
    truth: np.ndarray, wrong: torch.Tensor, view: tuple[slice, slice], fn_weight: float, exponent: float
) -> tuple[Figure, str]:
    """The Tversky plane, the focal curve and the gradient on a wrong mask, for a price of a miss; prices sum to 1.

    truth: bool (H, W); wrong: logits (1, 1, H, W); view: the window to show.
    """
    fp_weight = 1 - fn_weight
    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    missed, invented = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 2, 60))
    index = (1 - missed) / (1 - missed + fn_weight * missed + fp_weight * invented)
    loss = (1 - index).clip(0) ** exponent
    lines = axes[0].contour(missed, invented, loss, levels=np.arange(0.1, 1, 0.1), cmap="viridis")
    axes[0].clabel(lines, fontsize=9)
    axes[0].set(xlabel="missed / true root", ylabel="invented / true root", title="loss by the two mistakes")
    share = np.linspace(0, 1, 60)
    for kind, style, weight in (("missed", "-", fn_weight), ("invented", "--", fp_weight)):
        # As much of the true root is missed, or invented beside it, and nothing else is wrong.
        found = 1 - share if kind == "missed" else np.ones_like(share)
        curve = (1 - found / (found + weight * share)).clip(0) ** exponent
        axes[1].plot(share, curve, style, color=STAGE2 if kind == "missed" else BASE, lw=2, label=f"{kind} only")
    axes[1].set(
        xlabel="mistake / true root",
        ylabel="loss",
        ylim=(0, 1),
        title=f"a miss costs {fn_weight:.2f}, an invention {fp_weight:.2f}",
    )
    axes[1].legend()
    logits = wrong.clone().requires_grad_()
    target = torch.from_numpy(truth).float()[None, None]
    focal_tversky_loss(logits, target, fn_weight, fp_weight, exponent).backward()
    pull = -logits.grad[0, 0].numpy()[view]
    shown = axes[2].imshow(pull, cmap="PuOr_r", vmin=-np.abs(pull).max(), vmax=np.abs(pull).max())
    axes[2].contour(truth[view], levels=[0.5], colors="black", linewidths=1)
    axes[2].set(title="pull on a wrong mask (line: the truth)", xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=axes[2], shrink=0.8, ticks=[pull.min() * 0.8, np.abs(pull).max() * 0.9])
    bar.set_ticks([-np.abs(pull).max() * 0.9, 0, np.abs(pull).max() * 0.9], labels=["less root", "0", "more root"])
    up, down = pull[pull > 0].sum(), -pull[pull < 0].sum()
    alt = (
        f"With a miss at {fn_weight:.2f} and an invention at {fp_weight:.2f}: the loss over both mistakes as contours, "
        f"each mistake alone as a curve, and the pull on a wrong mask, {up / (up + down):.0%} of it towards more root."
    )
    return figure, alt


def film_strip(
    image: np.ndarray, truth: np.ndarray, film: Mapping[str, Sequence[np.ndarray]], stops: Sequence[int], scores
) -> Figure:
    """Masks over time, one row a loss and one column a step; scores: the root IoU of every frame, as film."""
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


# --- 06: cost


def _in_dollars(ax: Axes, axis: str = "x") -> None:
    getattr(ax, f"{axis}axis").set_major_formatter(lambda value, _: _dollars(value))


def _dollars(value: float) -> str:
    """Escaped: two bare dollar signs would make matplotlib set what is between them as a formula."""
    return f"\\${value:,.0f}"


def two_costs(manual: float, assisted: float, images: float, dollars: tuple[float, float]) -> Figure:
    """Minutes per scan and $ for all scans, by hand and with the model."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for ax, values, unit in (
        (axes[0], (manual, assisted), "minutes per scan"),
        (axes[1], dollars, f"\\$ for {images:,.0f} scans"),
    ):
        bars = ax.bar(
            ["by hand", "with RootSAM"], values, color=[BASE, STAGE2], hatch=["", "//"], ec="white", width=0.6
        )
        ax.bar_label(bars, [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values], padding=2)
        ax.set_ylabel(unit)
    return figure


def savings(saved: np.ndarray, low: float, high: float, poster: float) -> Figure:
    """The distribution of the saving over the draws, its interval shaded, the poster's figure as a line."""
    figure, ax = plt.subplots(figsize=(9, 3.6))
    ax.hist(saved, 60, color=BASE, alpha=0.85, ec="white", lw=0.3)
    ax.axvspan(low, high, color="0.85", zorder=0, label=f"9 of 10 draws: {_dollars(low)} to {_dollars(high)}")
    ax.axvline(poster, color=STAGE2, lw=2.5, ls="--", label=f"the poster's {_dollars(poster)}")
    ax.axvline(np.median(saved), color="black", lw=1.5, ls=":", label=f"median {_dollars(np.median(saved))}")
    ax.set(xlabel="saved over all scans", ylabel="draws")
    _in_dollars(ax)
    ax.legend(fontsize=10)
    return figure


def tornado_chart(swings: Sequence[Swing], ranges: Mapping[str, Range], middle: float) -> Figure:
    """One bar a number, from the saving at its low end to that at its high end, the widest on top."""
    figure, ax = plt.subplots(figsize=(10, 0.55 * len(swings) + 1.5))
    for place, swing in enumerate(reversed(swings)):
        ends = ((swing.at_low, BASE, ""), (swing.at_high, STAGE2, "//"))
        for end, colour, hatch in ends:
            ax.barh(place, end - middle, left=middle, color=colour, hatch=hatch, ec="white", height=0.7)
    names = [
        f"{s.name.replace('_', ' ')}\n{ranges[s.name].low:.3g} to {ranges[s.name].high:.3g}" for s in reversed(swings)
    ]
    ax.set_yticks(range(len(swings)), names, fontsize=9)
    ax.axvline(middle, color="black", lw=1)
    ax.set_xlabel(f"saved over all scans (line: {_dollars(middle)}, every number at its most likely value)")
    _in_dollars(ax)
    handles = [plt.Rectangle((0, 0), 1, 1, fc=c, ec="white", hatch=h) for c, h in ((BASE, ""), (STAGE2, "//"))]
    ax.legend(handles, ["at its lowest", "at its highest"], loc="lower right", fontsize=10)
    return figure


def break_even_chart(model, most: int) -> tuple[Figure, str]:
    """$ by number of scans, by hand and with the model, which starts at its set-up; it has paid where they cross."""
    images = np.linspace(0, most, 200)
    figure, ax = plt.subplots(figsize=(9, 3.8))
    by_hand = images * model.manual_minutes / 60 * model.wage
    ax.plot(images, by_hand, color=BASE, lw=2, label="by hand")
    assisted = by_hand - images * model.saved_per_image + model.set_up
    ax.plot(images, assisted, "--", color=STAGE2, lw=2.5, label="with the model")
    where = model.break_even
    alt = f"Costs by number of scans; the model's line starts at ${model.set_up:,.0f} of set-up, and "
    if where <= most:
        ax.plot(
            where, where * model.manual_minutes / 60 * model.wage, "ko", ms=9, label=f"break-even: {where:,.0f} scans"
        )
        ax.fill_between(images, assisted, by_hand, where=by_hand > assisted, color=STAGE1, alpha=0.35, label="saved")
        alt += f"crosses the line by hand at {where:,.0f} scans."
    else:
        alt += "does not cross the line by hand in this picture."
    ax.set(xlabel="scans to annotate", ylabel="cost", xlim=(0, most), ylim=(0, None))
    _in_dollars(ax, "y")
    ax.legend(fontsize=10)
    return figure, alt
