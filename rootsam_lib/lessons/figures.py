"""How every picture looks and is shown, and the charts that several lessons share."""

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
    error_view,
)  # fmt: skip
from rootsam_lib.evaluation.bootstrap import interval, tube_weights
from rootsam_lib.lessons.parameters import check_injected
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


# --- showing


def use_style() -> None:
    """Switch matplotlib to the project's style."""
    plt.rcParams.update(STYLE)


def start_lesson() -> None:
    """Begin a notebook: check the parameters that it was given, and set the style.

    Pictures are stored as JPEG: photographs of soil as PNG would make a notebook several megabytes large.
    Raises ValueError for a parameter that the notebook does not have.
    """
    use_style()
    if (shell := get_ipython()) is not None:
        check_injected(shell.user_ns["In"])
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


def canvas() -> Callable[[Figure, str], None]:
    """A place for one picture: the first call shows a figure with its alt text there, later calls replace it."""
    places = []

    def put(figure: Figure, alt: str) -> None:
        data, metadata = picture(figure, alt)
        if places:
            places[0].update(data, metadata=metadata, raw=True)
        else:
            places.append(display(data, metadata=metadata, raw=True, display_id=True))

    return put


def show(figure: Figure, alt: str) -> None:
    """Show a figure once, with an alt text for those who cannot see it."""
    canvas()(figure, alt)


def interactive(draw: Callable[..., tuple[Figure, str]], **controls: ipywidgets.ValueWidget) -> None:
    """Controls (`slider`, `choice`) over a figure: draw(**values) gives the figure and its alt text anew on a change.

    The figure for the controls' first values is an ordinary output, so that it is there without a person or a kernel.
    """
    for widget in controls.values():
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        if isinstance(widget, ipywidgets.Dropdown):
            labels = ", ".join(label for label, _ in widget.options)
            text = f"[choice] {widget.description}: {widget.label}, of {labels}"
        else:
            text = f"[slider] {widget.description}: {widget.value:g}, from {widget.min:g} to {widget.max:g}"
        display({"application/vnd.jupyter.widget-view+json": view, "text/plain": text}, raw=True)
    put = canvas()

    def redraw(_: object = None) -> None:
        put(*draw(**{name: control.value for name, control in controls.items()}))

    redraw()
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


# --- images


def panels(titles: Sequence[str], columns: int | None = None, size: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A grid of square axes without ticks for pictures, one per title."""
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


def qualitative(image: np.ndarray, prompts: Prompts, masks: Mapping[str, np.ndarray], truth: np.ndarray) -> Figure:
    """The poster's panel: prompts on the left, predictions on the right, one row per model."""
    titles = [title for name in masks for title in ("prompts", NAMES.get(name, name))]
    figure, axes = panels(titles, columns=2, size=4)
    for row, mask in enumerate(masks.values()):
        axes[2 * row].imshow(image)
        draw_prompts(axes[2 * row], prompts)
        axes[2 * row + 1].imshow(error_view(image, mask, truth))
    error_legend(figure)
    return figure


# --- charts


def caption(results: Mapping[str, object], table: str) -> str:
    """What a results file was made from, in two lines: data, prompts, model, device, intervals."""
    protocol, first, images = results["protocol"], next(iter(results["models"].values())), results["images"]
    patches = f"{images['patches_with_roots']} patches with roots and {images['patches_without_roots']} without"
    how = {
        "fixed prompts": f"{patches}; {protocol['n_root']} + {protocol['n_soil']} points from the true mask",
        "correction": f"{images['corrected_patches']} patches; clicks from the true mask",
    }[table]
    made = f"{first['model']}; {results['provenance']['device']}; seed {protocol['seed']}"
    return f"{how}\n{made}; lines: {results['intervals'].split(',')[0]} intervals over {images['tubes']} tubes"


def score_bars(results: Mapping[str, object]) -> Figure:
    """The poster's bar chart from an evaluation's results: each definition of the score under its own name, with 95 %
    intervals."""
    rows = results["tables"]["fixed prompts"]
    figure, ax = plt.subplots(figsize=(10.5, 4.4))
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        value, low, high = np.array([row[metric] for metric in METRIC_NAMES], float).T  # None becomes NaN
        error = np.nan_to_num([value - low, high - value])
        places = np.arange(len(METRIC_NAMES)) + (number - (len(rows) - 1) / 2) * width
        style = {"color": COLOURS.get(name, "0.6"), "hatch": HATCHES.get(name, ".."), "ec": "white"}
        ax.bar(places, value, 0.94 * width, label=NAMES.get(name, name), yerr=error, capsize=3, **style)
        for place, v, top in zip(places, value, value + error[1], strict=True):
            ax.text(place, top + 0.012, f"{v:.2f}", ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(METRIC_NAMES)), METRIC_NAMES.values())
    ax.set(ylim=(0, 1.14), ylabel="score (1 is perfect)")
    ax.legend(loc="upper right", ncols=len(rows))
    ax.set_title(f"{results['title']}\n{caption(results, 'fixed prompts')}", fontsize=10, loc="left")
    return figure


def live_curve(title: str, colour: str = STAGE1) -> Callable[[Sequence[Mapping[str, float]]], None]:
    """For `train_stage(..., after_epoch=live_curve(...))`: a chart that grows by the epoch."""
    put = canvas()
    return lambda history: put(*training_curve(history, title, colour))


def training_curve(history: Sequence[Mapping[str, float]], title: str, colour: str = STAGE1) -> tuple[Figure, str]:
    """Loss, validation root IoU and learning rate by epoch, and the same in words.

    The star marks the epoch that is kept: the best mean of prompted and automatic root IoU. Dotted lines mark where the
    scheduler lowered the rate.
    """
    epochs = [row["epoch"] + 1 for row in history]
    lowered = [after["epoch"] + 1 for before, after in itertools.pairwise(history) if after["lr"] < before["lr"]]
    best = max(history, key=lambda row: row["val_score"])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    labels = {"loss": "training loss", "root_iou": "root IoU on val (validation)", "lr": "learning rate"}
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        ax.plot(epochs, [row[key] for row in history], "o-", color=colour, markersize=4)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        for epoch in lowered:
            ax.axvline(epoch, color="0.6", linestyle=":")
    axes[1].lines[0].set_label("with points")
    automatic = [row["automatic_root_iou"] for row in history]
    axes[1].plot(epochs, automatic, "s--", color=colour, markersize=4, mfc="white", label="no prompt")
    axes[1].plot(best["epoch"] + 1, best["root_iou"], "*", color="black", markersize=13, label="best: kept")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, columnspacing=1)
    axes[2].set_yscale("log")
    figure.suptitle(title)
    return figure, (
        f"{title}: training loss, validation root IoU and learning rate over {len(history)} epochs. The loss goes from "
        f"{history[0]['loss']:.2f} to {history[-1]['loss']:.2f}; epoch {best['epoch'] + 1:.0f} is kept, with root IoU "
        f"{best['root_iou']:.2f} with points and {best['automatic_root_iou']:.2f} without; the rate was lowered "
        f"{len(lowered)} times."
    )


Curves = dict[str, dict[str, tuple[Sequence[int], np.ndarray]]]  # by score and model: clicks, and (K, 3) values


def evaluation_curves(results: Mapping[str, object]) -> Curves:
    """Scores by correction clicks from an evaluation's results, for `click_curves`."""
    labels = {"root_iou": "root IoU", "cl_dice": "centre-line Dice", "length_bias": "root length, found / true - 1"}
    curves = {label: {} for label in labels.values()}
    for name, row in results["tables"]["correction"].items():
        for key, label in labels.items():
            clicks = [int(column.split("@")[1]) for column in row if column.startswith(f"{key}@")]
            curves[label][name] = clicks, np.array([row[f"{key}@{k}"] for k in clicks], float)
    return curves


def annotator_curves(per_scan: Mapping[str, Sequence[Mapping]], seed: int = 0) -> Curves:
    """Scores by simulated clicks, means over scans, for `click_curves`.

    per_scan: the rows of `annotator.annotate` by model. The 95 % intervals draw whole tubes.
    """
    labels = {"root_iou": "root IoU", "cl_dice": "centre-line Dice", "length": "error of root length (share)"}
    curves = {label: {} for label in labels.values()}
    for name, rows in per_scan.items():
        weights = tube_weights([row["tube"] for row in rows], np.random.default_rng(seed))
        for key, label in labels.items():
            values = np.array([row[key] for row in rows], float)  # one row per scan, one column per click
            if key == "length":
                true = np.array([[max(row["true_length"], 1)] for row in rows])
                values = np.abs(values - true) / true
            samples = weights @ values / weights.sum(axis=1, keepdims=True)
            ends = [interval(sample) for sample in samples.T]
            curves[label][name] = range(values.shape[1]), np.column_stack([values.mean(axis=0), ends])
    return curves


def click_curves(curves: Curves, title: str) -> Figure:
    """One panel per score, one line per model with its 95 % interval as a band, over the number of clicks."""
    figure, axes = plt.subplots(1, len(curves), figsize=(13, 3.8))
    for ax, (label, lines) in zip(axes, curves.items(), strict=True):
        for name, (clicks, values) in lines.items():
            style = {"color": COLOURS.get(name, "0.5"), "label": NAMES.get(name, name)}
            ax.plot(clicks, values[:, 0], marker=MARKERS.get(name, "x"), markersize=5, **style)
            ax.fill_between(clicks, values[:, 1], values[:, 2], color=style["color"], alpha=0.18, linewidth=0)
        ax.set(xlabel="clicks", ylabel=label)
        ax.axhline(0, color="0.6", linestyle=":")
    axes[0].legend(fontsize=9)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure
