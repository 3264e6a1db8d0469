"""How every picture of the lessons looks and is shown, and the charts that several of them share."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patches import Patch as LegendPatch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from scipy.ndimage import uniform_filter

from rootsam_lib import drawing
from rootsam_lib.checkpoints import ROOTS
from rootsam_lib.lessons.parameters import check_injected
from rootsam_lib.metrics import count, iou
from rootsam_lib.prompts import ROOT, SOIL, Prompts

METRIC_NAMES = {
    "root_iou": "root IoU\n(mean over patches)",
    "class_mean_iou": "class-mean IoU\n(mean over patches)",
    "pooled_iou": "pooled IoU\n(all pixels)",
    "dice": "Dice\n(mean over patches)",
    "pooled_dice": "pooled Dice\n(all pixels)",
}
CURVE_SCORES = {
    "pooled_dice": "pooled Dice",
    "cl_dice": "clDice",
    "length_error": "length error (share of true length)",
}
CURVE_STYLES = {  # colour, line and marker, and its name in the legend
    "nano": (drawing.STAGE1, "-", "o", "nano"),
    "nano, poster's augmentation": ("black", "-.", "D", "nano, the poster's augmentation"),
    "nano-roots": ("0.6", ":", "^", "nano, drawn roots first"),
    "U-Net": ("0.35", "--", "s", "U-Net"),
}
UNWANTED = "#8c8c8c"
# Label, colour, marker:
MARKS = {"root point": (ROOT, drawing.ROOT_POINT, "o"), "soil point": (SOIL, drawing.SOIL_POINT, "X")}
# To less root, where false, or to more:
PULL = LinearSegmentedColormap.from_list("pull", (drawing.FALSE, "white", drawing.MISSED))
JPEG = {"quality": 80, "subsampling": 0}  # of stored pictures: colours stay within their lines
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
        shell.user_ns |= check_injected(shell.user_ns["In"])
        set_matplotlib_formats("jpeg", pil_kwargs=JPEG)


def picture(figure: Figure, alt: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """A figure as a notebook's output: its data (JPEG, and the alt text as plain text) and metadata; closes the figure.

    The metadata's "alt" becomes the picture's alt text in nbconvert's pages and in the report. Raises ValueError
    without an alt text that says something.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt text {alt!r} says too little: tell in a sentence what is to be seen.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", bbox_inches="tight", pil_kwargs=JPEG)
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


def panels(
    titles: Sequence[str], columns: int | None = None, size: float = 3.6, ticks: bool = False
) -> tuple[Figure, list[Axes]]:
    """A grid of square axes for pictures, one per title; ticks: with x and y in px, to read places from."""
    columns = columns or len(titles)
    rows = -(-len(titles) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.3) * rows), squeeze=False)
    axes = list(grid.ravel())
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for number, ax in enumerate(axes):
        if ticks and number < len(titles):
            ax.set(xlabel="x in px", ylabel="y in px" if number % columns == 0 else "")
            ax.tick_params(labelsize=8)
        else:
            ax.set_axis_off()
    return figure, axes[: len(titles)]


def legend(figure: Figure, parts: Mapping[str, str] | None = None, points: Mapping[str, str] | None = None) -> None:
    """Name colours, {name: colour}, below a figure, and those marks of `draw_prompts` that are drawn in it; points:
    other names for these, {name in `MARKS`: name}."""
    handles = _patches(parts or {}) + _point_handles(figure)
    for handle in handles:
        handle.set_label((points or {}).get(handle.get_label(), handle.get_label()))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def error_legend(
    figure: Figure,
    excess: str = "false root",
    found: str = "found",
    missed: str = "missed",
    colours: Sequence[str] = drawing.ERRORS,
    more: Mapping[str, str] | None = None,
    points: Mapping[str, str] | None = None,
) -> None:
    """The `legend` of the three colours of `error_view`, and of more, {name: colour}."""
    legend(figure, dict(zip((found, missed, excess), colours, strict=True)) | dict(more or {}), points)


def _patches(parts: Mapping[str, str]) -> list[LegendPatch]:
    return [LegendPatch(facecolor=colour, edgecolor="0.4", label=name) for name, colour in parts.items()]


def _point_handles(figure: Figure) -> list[Line2D]:
    drawn = {marks.get_label() for ax in figure.axes for marks in ax.collections}
    style = {"linestyle": "", "markersize": 8, "markeredgecolor": "0.4"}
    return [
        Line2D([], [], marker=marker, color=colour, label=name, **style)
        for name, (_, colour, marker) in MARKS.items()
        if name in drawn
    ]


def busiest(mask: np.ndarray, side: int) -> tuple[slice, slice]:
    """The window of side x side px in which a mask, bool (H, W), holds the most, for a close-up."""
    crowd = uniform_filter(mask.astype(float), side, mode="constant")
    middle = np.unravel_index(crowd.argmax(), crowd.shape)
    starts = (min(max(m - side // 2, 0), max(n - side, 0)) for m, n in zip(middle, mask.shape, strict=True))
    return tuple(slice(start, start + side) for start in starts)


def close_up(axes: Sequence[Axes], x: np.ndarray, y: np.ndarray, shape: tuple[int, int], margin: int) -> None:
    """Show the same square of an image of this shape in all axes: around points, inside the image where it can be."""
    side = max(np.ptp(x), np.ptp(y)) + 2 * margin
    middles = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    left, top = (max(min(m - side / 2, n - side), 0) for m, n in zip(middles, shape[::-1], strict=True))
    for ax in axes:
        ax.set(xlim=(left, left + side), ylim=(top + side, top))


def draw_prompts(ax: Axes, prompts: Prompts, size: float = 45, hollow: bool = False) -> None:
    """Mark prompt points: green circles on roots, red crosses on soil (told apart by shape too); hollow ones let what
    lies below them be seen."""
    style = {"s": size, "linewidths": 1.2 if hollow else 0.8}
    for name, (label, colour, marker) in MARKS.items():
        points = prompts.points[prompts.labels == label]
        if len(points):
            inks = {"facecolors": "none", "edgecolors": colour} if hollow else {"c": colour, "edgecolors": "white"}
            ax.scatter(points[:, 0], points[:, 1], marker=marker, label=name, **style, **inks)


def tube_drawing() -> tuple[Figure, str]:
    """How a minirhizotron works, drawn: a tube in the soil, a scanner in it, its windows; and the alt text."""
    figure, ax = plt.subplots(figsize=(9, 4.4))
    ax.axhspan(-5, 0, color="#c9b79c")  # soil
    ax.axhline(0, color="#5f7f2f", lw=5)
    for colour, width in (("0.35", 36), ("white", 32)):
        ax.plot([1.2, 6.4], [0.9, -4.3], color=colour, lw=width, solid_capstyle="butt")  # the tube
    steps = np.linspace(0, 1, 80)
    for end, depth in ((1.9, 2.1), (2.6, 3.6), (4.3, 4.4), (6.6, 4.4), (8.6, 3.4)):
        ax.plot(5 + (end - 5) * steps + 0.3 * np.sin(6 * steps) * steps, -depth * steps**1.2, color="#f4ecd8", lw=2.4)
    for number, (x, y) in enumerate(np.linspace((2.7, -0.6), (5.7, -3.6), 4), 1):
        ax.plot(x, y, "s", color="0.6", markersize=22)
        ax.annotate(f"L{number:03d}", (x + 0.5, y), color="black")
    notes = {
        "plant and its roots": ((5, 0.1), (6, 0.9)),
        "clear tube (T), in the soil for years": ((1.5, 0.9), (2.2, 1.25)),
        "scanner inside the tube:\none scan per window (L) and date": ((4.5, -2.7), (0.2, -4.6)),
    }
    for text, (point, place) in notes.items():
        ax.annotate(text, point, place, color="black", arrowprops={"arrowstyle": "->", "color": "black"})
    ax.set(xlim=(0, 10), ylim=(-5, 1.6), xticks=[], yticks=[-5, 0], yticklabels=["deep", "soil surface"])
    alt = "Drawing of a clear tube set into the soil at a slant beside a plant; a scanner inside it sees four windows, "
    return figure, alt + "L001 to L004, and the roots that grow along them."


def approach(image: np.ndarray, features: np.ndarray, prompts: Prompts, prediction: np.ndarray) -> Figure:
    """The poster's approach figure, A to D: image and prompts enter the base model, a mask leaves it.

    features: (h, w), any map of the frozen encoder. prediction: uint8 (H, W, 3), such as an `error_view`.
    """
    figure = plt.figure(figsize=(12, 6.4), layout="none")
    places = {
        "A  image": (0.01, 0.52),
        "B  features of the frozen encoder": (0.26, 0.52),
        "D  prediction, not trained yet": (0.76, 0.52),
        "C  prompts": (0.51, 0.0),
    }
    shows = (image, features, prediction, image)
    for (title, (left, bottom)), picture in zip(places.items(), shows, strict=True):
        ax = figure.add_axes((left, bottom + 0.02, 0.22, 0.4))
        ax.imshow(picture, cmap="magma")
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    draw_prompts(ax, prompts, 30)
    box = {"boxstyle": "round,pad=0.6", "facecolor": "#fff3ee", "edgecolor": drawing.STAGE2}
    figure.text(
        0.62, 0.73, "prompt encoder\nand mask decoder\n(lesson 03 trains them)", ha="center", va="center", bbox=box
    )
    arrow = {"arrowstyle": "-|>", "lw": 2, "color": "0.25"}
    for start, end in (((0.235, 0.73), (0.258, 0.73)), ((0.485, 0.73), (0.54, 0.73)), ((0.70, 0.73), (0.755, 0.73)),
                       ((0.62, 0.47), (0.62, 0.63))):  # fmt: skip
        figure.add_artist(FancyArrowPatch(start, end, mutation_scale=18, transform=figure.transFigure, **arrow))
    errors = dict(zip(("found", "missed", "false root"), drawing.ERRORS, strict=True))
    figure.legend(handles=_patches(errors), loc="lower right", bbox_to_anchor=(0.99, 0.3))
    figure.legend(handles=_point_handles(figure), loc="lower left", bbox_to_anchor=(0.36, 0.2))
    return figure


def control_picture(
    image: np.ndarray,
    roots: np.ndarray,
    wanted: np.ndarray,
    answers: Mapping[str, tuple[Prompts | None, np.ndarray]],
    table: Mapping,
) -> Figure:
    """The prompt control: one patch asked in several ways, and the same over all patches as bars.

    roots, wanted: bool (H, W), all roots and those that are asked for. answers: {title: (points, mask)}. table: of
    `protocols.evaluate`.
    """
    told = [f"{how}\nIoU with the wanted roots {iou(count(mask, wanted)):.2f}" for how, (_, mask) in answers.items()]
    figure, axes = panels([*told, "all patches with several roots"], columns=2, size=4.2)
    for ax, (points, mask) in zip(axes, answers.values(), strict=False):
        ax.imshow(drawing.overlay(drawing.error_view(image, mask, wanted), roots & ~wanted & ~mask, UNWANTED, 1))
        if points is not None:
            draw_prompts(ax, points)
    asked = {"true_points": "wanted roots", "moved_points": "other roots", "no_points": "none"}
    for number, (name, row) in enumerate(table.items()):
        value, low, high = np.array([row[column] for column in asked], float).T
        style = {"color": drawing.COLOURS[name], "hatch": drawing.HATCHES[name], "ec": "white"}
        places = np.arange(len(asked)) + (number - 1) * 0.27
        label, error = drawing.NAMES[name], np.nan_to_num([value - low, high - value])
        axes[-1].bar(places, value, 0.25, yerr=error, capsize=2, label=label, **style)
    axes[-1].set_axis_on()
    axes[-1].set_xticks(range(len(asked)), asked.values())
    axes[-1].set(xlabel="points on", ylabel="IoU with the wanted roots")
    axes[-1].margins(y=0.3)  # room for the legend
    axes[-1].legend(fontsize=9)
    error_legend(figure, "not asked for, or false", more={"unwanted root, rightly left out": UNWANTED})
    return figure


def changes(scans: Mapping[str, np.ndarray], stayed: np.ndarray, grew: np.ndarray, vanished: np.ndarray) -> Figure:
    """Two scans of one window, {date: image}, and what became of the roots between them, each a bool (H, W), over the
    later one in dark grey."""
    figure, axes = panels([*scans, "what changed"], size=4.2)
    for ax, image in zip(axes, scans.values(), strict=False):
        ax.imshow(image)
    axes[-1].imshow(drawing.error_view(image, stayed | grew, stayed | vanished, drawing.CHANGES))
    error_legend(figure, "grew", "on both dates", "vanished", drawing.CHANGES)
    return figure


def found_roots(image: np.ndarray, masks: Mapping[str, np.ndarray], title: str = "image") -> Figure:
    """An image beside what each model calls root in it, in the model's colour over the image in grey: for images that
    nobody has annotated, so that found and false cannot be told apart. masks: {"base": bool (H, W), ...}."""
    figure, axes = panels([title, *(drawing.NAMES.get(name, name) for name in masks)], size=4)
    axes[0].imshow(image)
    for ax, (name, mask) in zip(axes[1:], masks.items(), strict=True):
        ax.imshow(drawing.overlay(drawing.grey(image), mask, drawing.COLOURS.get(name, drawing.MASK), 1))
    legend(figure, {drawing.NAMES.get(name, name): drawing.COLOURS.get(name, drawing.MASK) for name in masks})
    return figure


# --- charts


def score_bars(results: Mapping[str, object]) -> Figure:
    """The poster's bar chart from an evaluation's results: each definition of the score, with 95 % intervals."""
    rows = results["tables"]["fixed prompts"]
    figure, ax = plt.subplots(figsize=(10.5, 4.4))
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        value, low, high = np.array([row[metric] for metric in METRIC_NAMES], float).T  # None becomes NaN
        error = np.nan_to_num([value - low, high - value])
        places = np.arange(len(METRIC_NAMES)) + (number - (len(rows) - 1) / 2) * width
        style = {"color": drawing.COLOURS.get(name, "0.6"), "hatch": drawing.HATCHES.get(name, ".."), "ec": "white"}
        ax.bar(places, value, 0.94 * width, label=drawing.NAMES.get(name, name), yerr=error, capsize=3, **style)
        for place, v, top in zip(places, value, value + error[1], strict=True):
            ax.text(place, top + 0.012, f"{v:.2f}", ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(METRIC_NAMES)), METRIC_NAMES.values())
    ax.set(ylim=(0, 1.14), ylabel="score (1 is perfect)")
    ax.legend(loc="upper right", ncols=len(rows))
    protocol, about = results["protocol"], next(iter(results["models"].values()))
    points = f"{protocol['n_root']} + {protocol['n_soil']} points from the true mask; seed {protocol['seed']}"
    intervals = f"lines: {results['intervals'].split(',')[0]} intervals over {results['images']['tubes']} tubes"
    model = about["model"].split(" (")[0]
    ax.set_title(f"{results['title']}\n{model}; {points}; {intervals}", fontsize=10, loc="left")
    return figure


def curve_rows(results: Mapping[str, object]) -> list[tuple[str, int, Mapping]]:
    """The rows named "MODEL, N scans, draw D" of whole scans' results: model, N and scores."""
    named = ((re.fullmatch(r"(.*), (\d+) scans, draw \d+", name), row) for name, row in results["rows"].items())
    return [(found[1], int(found[2]), row) for found, row in named if found]


def learning_curve(results: Mapping[str, object]) -> tuple[Figure, str]:
    """Scores of whole real scans by the number of annotated scans, from `benchmarks/real_scans.py`'s rows named
    "MODEL, N scans, draw D", and the same in words: every draw a marker, means joined."""
    rows = curve_rows(results)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    told = []
    for ax, (score, label) in zip(axes, CURVE_SCORES.items(), strict=True):
        told.append(f"{label[0].upper()}{label[1:]}:")
        for model, (colour, style, marker, name) in CURVE_STYLES.items():
            values = {}
            for _, number, row in sorted((r for r in rows if r[0] == model), key=lambda r: r[1]):
                values.setdefault(number, []).append(row[score][0])
            if not values:
                continue
            for number, own in values.items():
                ax.plot([number] * len(own), own, marker, color=colour, mfc="white", markersize=6)
            means = {number: float(np.mean(own)) for number, own in values.items()}
            ax.plot(list(means), list(means.values()), style, color=colour)
            ax.plot([], [], style * (len(means) > 1) + marker, color=colour, mfc="white", markersize=6, label=name)
            told.append(f"{name}: " + ", ".join(f"{n} {v:.2f}" for n, v in means.items()) + ";")
        if ROOTS in results["rows"]:
            none = results["rows"][ROOTS][score][0]
            ax.axhline(none, color="0.6", linestyle="-.", label="nano-roots, no annotated scan")
            told.append(f"nano-roots, no annotated scan: {none:.2f}.")
        ax.set(xscale="log", xlabel="annotated scans", ylabel=label)
        ax.set_xticks(numbers := sorted({int(r[1]) for r in rows}), numbers)
        ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=5)
    figure.suptitle("How many scans must be annotated? Real scans, no prompt; markers: draws; axes begin above 0")
    return figure, f"Learning curves by number of scans. {' '.join(told)}"


def live_curve(title: str, colour: str = drawing.STAGE1) -> Callable[[Sequence[Mapping[str, float]]], None]:
    """For `train_stage(..., after_epoch=live_curve(...))`: a chart that grows by the epoch."""
    put = canvas()
    return lambda history: put(*training_curve(history, title, colour))


def training_curve(
    history: Sequence[Mapping[str, float]], title: str, colour: str = drawing.STAGE1
) -> tuple[Figure, str]:
    """Loss, validation root IoU and learning rate by epoch, and the same in words.

    The star marks the epoch that is kept: the best mean of prompted and automatic root IoU.
    """
    table = pd.DataFrame(history)
    best, epochs = table.loc[table["val_score"].idxmax()], table["epoch"] + 1
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    axes[0].plot(epochs, table["loss"], "o-", color=colour, markersize=4)
    axes[1].plot(epochs, table["root_iou"], "o-", color=colour, markersize=4, label="with points")
    axes[1].plot(epochs, table["automatic_root_iou"], "s--", color=colour, markersize=4, mfc="white", label="no prompt")
    axes[1].plot(best["epoch"] + 1, best["root_iou"], "*", color="black", markersize=13, label="best: kept")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, columnspacing=1)
    axes[2].step(epochs, table["lr"], color=colour, where="mid")
    axes[2].set_yscale("log")
    axes[0].set_ylim(0, 1.15 * table["loss"].max())  # from 0: a step of noise must not look like a leap
    axes[1].set_ylim(0, max(0.5, 1.15 * table[["root_iou", "automatic_root_iou"]].to_numpy().max()))
    for ax, label in zip(axes, ("training loss", "root IoU on val (validation)", "learning rate"), strict=True):
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    return figure, (
        f"{title}: training loss, validation root IoU and learning rate over {len(table)} epochs. The loss goes from "
        f"{history[0]['loss']:.2f} to {history[-1]['loss']:.2f}; epoch {best['epoch'] + 1:.0f} is kept, with root IoU "
        f"{best['root_iou']:.2f} with points and {best['automatic_root_iou']:.2f} without; the rate goes from "
        f"{history[0]['lr']:.1e} to {history[-1]['lr']:.1e}."
    )
