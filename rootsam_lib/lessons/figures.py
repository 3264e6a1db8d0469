"""Every picture, in one style: the poster's colours for the models, green points on roots, red ones on soil."""

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch as LegendPatch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from rootsam_lib.drawing import (
    COLOURS,
    FALSE,
    FOUND,
    HATCHES,
    MARKERS,
    MISSED,
    NAMES,
    ROOT_POINT,
    SOIL_POINT,
    STAGE1,
    STAGE2,
    error_view,
)  # fmt: skip
from rootsam_lib.prompts import ROOT, SOIL, Prompts

METRIC_NAMES = {
    "root_iou": "root IoU\n(mean over patches)",
    "class_mean_iou": "class-mean IoU\n(mean over patches)",
    "pooled_iou": "pooled IoU\n(all pixels)",
    "dice": "Dice\n(mean over patches)",
    "pooled_dice": "pooled Dice\n(all pixels)",
}
QUALITY = 88  # of pictures stored as JPEG
STYLE = {
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
    "legend.frameon": False,
}


def use_style() -> None:
    """Switch matplotlib to the project's style; the first cell of every notebook calls it.

    In a notebook pictures are stored as JPEG: photographs of soil as PNG would make it several megabytes large.
    """
    plt.rcParams.update(STYLE)
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": QUALITY})


def picture(figure: Figure, alt: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """A figure as a notebook's output: its data (JPEG, and the alt text as plain text) and metadata; closes the figure.

    The metadata's "alt" becomes the picture's alt text in nbconvert's pages and in the report. Raises ValueError
    without an alt text that says something.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt text {alt!r} says too little: tell in a sentence what is to be seen.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", bbox_inches="tight", pil_kwargs={"quality": QUALITY})
    plt.close(figure)
    data = {"image/jpeg": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    return data, {"image/jpeg": {"alt": alt}}


def show(figure: Figure, alt: str) -> None:
    """Show a figure once, with an alt text for those who cannot see it."""
    data, metadata = picture(figure, alt)
    display(data, metadata=metadata, raw=True)


def interactive(draw: Callable[..., tuple[Figure, str]], **controls: ipywidgets.ValueWidget) -> None:
    """Controls (`slider`, `choice`) over a figure: draw(**values) gives the figure and its alt text anew on a change.

    The figure for the controls' first values is an ordinary output, so that it is there without a person or a kernel.
    """
    for widget in controls.values():
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        if isinstance(widget, ipywidgets.Dropdown):
            said = (
                f"[choice] {widget.description}: {widget.label}, of {', '.join(label for label, _ in widget.options)}"
            )
        else:
            said = f"[slider] {widget.description}: {widget.value:g}, from {widget.min:g} to {widget.max:g}"
        display({"application/vnd.jupyter.widget-view+json": view, "text/plain": said}, raw=True)
    data, metadata = picture(*draw(**{name: control.value for name, control in controls.items()}))
    handle = display(data, metadata=metadata, raw=True, display_id=True)

    def redraw(_: object) -> None:
        data, metadata = picture(*draw(**{name: control.value for name, control in controls.items()}))
        handle.update(data, metadata=metadata, raw=True)

    for control in controls.values():
        control.observe(redraw, "value")


def slider(label: str, start: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    """A slider that answers when it is let go; a start outside of its range is moved to the nearer end."""
    return ipywidgets.FloatSlider(
        value=min(max(start, low), high),
        min=low,
        max=high,
        step=step,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "480px"},
    )


def choice(label: str, options: Mapping[str, object]) -> ipywidgets.Dropdown:
    """A list to choose from, {what is read: value}; it starts at the first."""
    style = {"description_width": "initial"}
    return ipywidgets.Dropdown(options=list(options.items()), description=label, style=style)


def panels(titles: Sequence[str], columns: int | None = None, size: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A grid of square axes without ticks for pictures, one a title."""
    columns = columns or len(titles)
    rows = -(-len(titles) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.3) * rows), squeeze=False)
    axes = list(grid.ravel())
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes[: len(titles)]


def error_legend(figure: Figure, excess: str = "false root") -> None:
    """Name the three colours of `error_view` below a figure; excess: what a false positive is called."""
    entries = (("found", FOUND), ("missed", MISSED), (excess, FALSE))
    handles = [LegendPatch(facecolor=colour, edgecolor="0.4", label=label) for label, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def draw_prompts(ax: Axes, prompts: Prompts, size: float = 45) -> None:
    """Mark prompt points: green circles on roots, red crosses on soil (told apart by shape too)."""
    for label, colour, marker in ((ROOT, ROOT_POINT, "o"), (SOIL, SOIL_POINT, "X")):
        points = prompts.points[prompts.labels == label]
        ax.scatter(points[:, 0], points[:, 1], s=size, c=colour, marker=marker, edgecolors="white", linewidths=0.8)


def minirhizotron() -> Figure:
    """A drawing of how the scans are made: a clear tube in the soil, a scanner inside, one window a depth."""
    figure, ax = plt.subplots(figsize=(9, 4.6))
    ax.fill([0, 10, 10, 0], [0, 0, -5, -5], color="#c9b79c")
    ax.plot([0, 10], [0, 0], color="#5f7f2f", linewidth=5)
    top, bottom = np.array([1.2, 0.9]), np.array([6.4, -4.3])
    along = (bottom - top) / np.hypot(*(bottom - top))
    across = np.array([-along[1], along[0]]) * 0.33
    ax.fill(*np.array([top + across, bottom + across, bottom - across, top - across]).T, color="white", ec="0.35", lw=2)
    for number, share in enumerate((0.3, 0.5, 0.7, 0.9)):
        corners = [
            top + (share + d) * (bottom - top) + s * across for d, s in ((-0.07, 1), (0.07, 1), (0.07, -1), (-0.07, -1))
        ]
        ax.fill(*np.array(corners).T, color=STAGE2 if number == 1 else "#dbe6f2", ec="0.5", alpha=0.85)
        ax.annotate(f"L{number + 1:03d}", corners[0] + [0.12, 0.05], fontsize=9, color="0.25")
    steps = np.linspace(0, 1, 80)
    for end, depth, bend in ((1.9, 2.1, 0.2), (2.6, 3.6, -0.3), (4.3, 4.4, 0.4), (6.6, 4.4, -0.4), (8.6, 3.4, 0.3)):
        x = 5 + (end - 5) * steps + bend * np.sin(6 * steps) * steps
        ax.plot(x, -depth * steps**1.2, color="#f4ecd8", linewidth=2.4)
    notes = {
        "plant and its roots": ((5.1, 0.1), (6.1, 0.9)),
        "clear tube (T), in the soil for years": (top - across * 0.6, (1.9, 1.25)),
        "scanner inside the tube:\none scan a window (L) and date": (top + 0.5 * (bottom - top), (0.15, -4.6)),
    }
    for text, (point, place) in notes.items():
        ax.annotate(text, point, place, fontsize=10, arrowprops={"arrowstyle": "->", "color": "0.2"})
    ax.plot([5, 5, 5.3], [0, 0.7, 1.0], color="#5f7f2f", linewidth=3)
    ax.set(xlim=(0, 10), ylim=(-5, 1.6), xticks=[], yticks=[-5, -2.5, 0], yticklabels=["deep", "", "soil surface"])
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_visible(False)
    return figure


def score_bars(
    results: Mapping[str, object], table: str = "fixed prompts", metrics: Sequence[str] = tuple(METRIC_NAMES)
) -> Figure:
    """The poster's bar chart from a results file: one group of bars a metric, each metric under its own name, with 95 %
    intervals."""
    rows = results["tables"][table]
    figure, ax = plt.subplots(figsize=(2.1 * len(metrics), 4.4))
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        value, low, high = np.array([row[m] for m in metrics], float).T  # None, for no score, becomes NaN
        value = np.nan_to_num(value)
        places = np.arange(len(metrics)) + (number - (len(rows) - 1) / 2) * width
        colour, hatch = COLOURS.get(name, "0.6"), HATCHES.get(name, "..")
        bars = ax.bar(places, value, width * 0.94, color=colour, hatch=hatch, ec="white", label=NAMES.get(name, name))
        error = np.nan_to_num([np.maximum(value - low, 0), np.maximum(high - value, 0)])
        ax.errorbar(places, value, error, fmt="none", ecolor="0.15", elinewidth=1.2, capsize=3)
        for bar, v, top in zip(bars, value, value + error[1], strict=True):
            ax.text(bar.get_x() + bar.get_width() / 2, top + 0.012, f"{v:.2f}", ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(metrics)), [METRIC_NAMES.get(m, m) for m in metrics])
    ax.set_ylim(0, 1.14)
    ax.set_ylabel("score (1 is perfect)")
    ax.legend(loc="upper right", ncols=len(rows))
    ax.set_title(f"{results['title']}\n{caption(results, table)}", fontsize=10, loc="left")
    return figure


def caption(results: Mapping[str, object], table: str = "fixed prompts") -> str:
    """What a results file was made from, in two lines: data, prompts, model, device, intervals."""
    protocol, first, images = results["protocol"], next(iter(results["models"].values())), results["images"]
    patches = f"{images['patches_with_roots']} patches with roots and {images['patches_without_roots']} without"
    how = {
        "fixed prompts": f"{patches}; {protocol['n_root']} + {protocol['n_soil']} points from the true mask",
        "automatic": f"{patches}; no prompt",
        "whole scans": f"{images['scans']} whole scans; no prompt",
        "correction": f"{images['corrected_patches']} patches; clicks from the true mask",
    }[table]
    made = f"{first['model']}; {results['provenance']['device']}; seed {protocol['seed']}"
    return f"{how}\n{made}; lines: {results['intervals'].split(',')[0]} intervals over {images['tubes']} tubes"


def training_curve(history: Sequence[Mapping[str, float]], title: str, colour: str = STAGE1) -> Figure:
    """Loss, validation root IoU and learning rate by epoch; dotted lines mark where the scheduler lowered the rate.

    The star marks the epoch that is kept: the best mean of prompted and automatic root IoU.
    """
    epochs = [row["epoch"] + 1 for row in history]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    labels = {"loss": "training loss", "root_iou": "root IoU on val (validation)", "lr": "learning rate"}
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        ax.plot(epochs, [row[key] for row in history], "o-", color=colour, markersize=4)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel(label)
        for before, after in itertools.pairwise(history):
            if after["lr"] < before["lr"]:
                ax.axvline(after["epoch"] + 1, color="0.6", linestyle=":")
    axes[1].lines[0].set_label("with points")
    automatic = [row["automatic_root_iou"] for row in history]
    axes[1].plot(epochs, automatic, "s--", color=colour, markersize=4, mfc="white", label="no prompt")
    best = max(history, key=lambda row: row["val_score"])
    axes[1].plot(best["epoch"] + 1, best["root_iou"], "*", color="black", markersize=13, label="best: kept")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, columnspacing=1)
    axes[2].set_yscale("log")
    figure.suptitle(title)
    return figure


def click_curves(results: Mapping[str, object]) -> Figure:
    """Root IoU, centre-line Dice and root-length bias by correction clicks, one line a model, with 95 % intervals."""
    rows = results["tables"]["correction"]
    labels = {"root_iou": "root IoU", "cl_dice": "centre-line Dice", "length_bias": "root length, found / true - 1"}
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            clicks = [int(k.split("@")[1]) for k in row if k.startswith(f"{key}@")]
            value, low, high = np.array([row[f"{key}@{k}"] for k in clicks], float).T
            places = np.arange(len(clicks)) + 0.06 * (number - 1)
            error = np.nan_to_num([np.maximum(value - low, 0), np.maximum(high - value, 0)])
            style = {"color": COLOURS.get(name, "0.5"), "marker": MARKERS.get(name, "x"), "capsize": 2}
            ax.errorbar(places, value, error, label=NAMES.get(name, name), elinewidth=0.9, **style)
            ax.set_xticks(range(len(clicks)), clicks)
        ax.set(xlabel="correction clicks (not to scale)", ylabel=label)
        if key != "length_bias":
            ax.set_ylim(0, 1)
    axes[2].axhline(0, color="0.6", linestyle=":")
    axes[0].legend(fontsize=9)
    figure.suptitle(f"{results['title']}: {caption(results, 'correction')}", fontsize=9, x=0.01, ha="left")
    return figure


def qualitative(image: np.ndarray, prompts: Prompts, masks: Mapping[str, np.ndarray], truth: np.ndarray) -> Figure:
    """The poster's panel: prompts on the left, predictions on the right, one row a model."""
    titles = [t for name in masks for t in ("prompts", NAMES.get(name, name))]
    figure, axes = panels(titles, columns=2, size=4)
    for row, mask in enumerate(masks.values()):
        axes[2 * row].imshow(image)
        draw_prompts(axes[2 * row], prompts)
        axes[2 * row + 1].imshow(error_view(image, mask, truth))
    error_legend(figure)
    return figure


def parameter_bars(rows: Sequence[Mapping[str, object]], title: str) -> Figure:
    """What is frozen and what is trained, by parameter count, from `RootSAM.parameter_table`."""
    figure, ax = plt.subplots(figsize=(8.5, 2.6))
    names = [str(row["part"]) for row in rows][::-1]
    counts = [int(row["parameters"]) for row in rows][::-1]
    states = [str(row["state"]) for row in rows][::-1]
    bars = ax.barh(
        names,
        [count / 1e6 for count in counts],
        color=[STAGE2 if s == "trained" else "#9bb7d0" for s in states],
        hatch=["" if s == "trained" else "//" for s in states],
        ec="white",
    )
    ax.bar_label(bars, [f" {c:,} ({s})" for c, s in zip(counts, states, strict=True)], fontsize=10)
    ax.set_xlim(0, max(counts) / 1e6 * 1.35)
    ax.set_xlabel("million parameters")
    ax.set_title(title, loc="left")
    return figure


def trait_agreement(
    predicted: Sequence[float], true: Sequence[float], result: Mapping[str, float], quantity: str, colour: str = STAGE2
) -> Figure:
    """A trait of predicted masks against that of the true ones: scatter, and Bland & Altman's plot of differences.

    result: from `traits.agreement` on the same values. quantity: the trait's name with its unit, such as "length (mm)".
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    top = 1.05 * max(predicted.max(), true.max(), 1e-9)
    axes[0].plot([0, top], [0, top], color="0.6", linestyle=":", label="equal")
    axes[0].scatter(true, predicted, color=colour)
    told = f"R² {result['r2']:.2f} to the dotted line\n{result['r2_fitted']:.2f} to a fitted one"
    axes[0].set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}", xlim=(0, top), ylim=(0, top), title=told)
    axes[0].legend(loc="upper left")
    axes[1].scatter((predicted + true) / 2, predicted - true, color=colour)
    axes[1].axhline(0, color="0.6", linestyle=":")
    axes[1].axhline(result["bias"], color="black", label="bias")
    axes[1].axhspan(result["bias_low"], result["bias_high"], color="black", alpha=0.12, label="its 95 % interval")
    for limit in ("limits_low", "limits_high"):
        axes[1].axhline(result[limit], color="black", linestyle="--", linewidth=1)
    axes[1].lines[-1].set_label("95 % of differences")
    told = f"bias {result['relative_bias']:+.0%} of the true mean\n{result['scans']} scans of {result['tubes']} tubes"
    axes[1].set(xlabel=f"mean of both, {quantity}", ylabel=f"predicted - true {quantity}", title=told)
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=9)  # below: lines fill the axes
    return figure
