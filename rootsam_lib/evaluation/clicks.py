"""A person, simulated: who corrects where the mask is most wrong, and takes time for it.

Every click is drawn from the true mask: this is what a perfectly informed person would reach, and not how well a person
sees.
"""

import heapq
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from scipy.ndimage import label
from skimage.graph import MCP_Geometric

from rootsam_lib.data.scans import Scan, check_masks
from rootsam_lib.evaluation.bootstrap import NAN, RatioTerms, collect, estimates, tube_weights
from rootsam_lib.evaluation.tools import FAR, MARGIN, Edit, remove_segment, trace_between, window_around
from rootsam_lib.metrics import EIGHT, cl_dice, count, dilate, iou, thinned
from rootsam_lib.predictor import Click, Predictor
from rootsam_lib.prompts import ROOT, next_click
from rootsam_lib.results import progress, provenance, read_json, write_json
from rootsam_lib.traits import trace

Predict = Callable[[Sequence[Click]], np.ndarray]  # all clicks so far -> mask bool (H, W): `Predictor.correct`
CLICKS = (0, 1, 3, 5, 10, 20)
THRESHOLDS = (0.6, 0.7, 0.8, 0.85)
MINUTES = (0, 1, 2, 4.5)  # after which a mask is scored; the poster's people took 4.5 minutes a scan
NEAR = 2  # px: a centre line so near to the mask is not missed
HOP = 250  # px: the side of the view in which a person traces from end to end
LEAST = 8  # px of centre line: nobody corrects less
# Seconds of a person's time, at least and at most; a value between is as likely as another.
SECONDS = {"review": (20, 60), "find": (1, 6), "click": (0.7, 1.4), "reach": (1.1, 2.5), "undo": (1.6, 3.0)}
TIME_SOURCES = {
    "review": "20 to 60 s a scan to look it over before and after: our assumption, no value found in the literature",
    "find": "1 to 6 s to see the next mistake and get there: RootPainter's simulated annotator (sim_benchmark) takes "
    "1.5 s between strokes; a scan of 2550 x 2273 px needs zooming. Upper end: our assumption, no value found",
    "click": "0.7 to 1.4 s: a stroke on soil and on root in RootPainter's simulated annotator; a click is no longer",
    "reach": "1.1 to 2.5 s from the first end of a root to its second: pointing alone, and with a thought before it "
    "(keystroke-level model, Card, Moran & Newell 1980: 1.1 s and 1.35 s)",
    "undo": "1.6 to 3.0 s to see that an answer is wrong and take it back: a thought and a key (1.35 s and 0.28 s, the "
    "same model), upper end two thoughts",
}
# Ways to spend the minutes: with which tools, and from which mask on. "click" needs a model that answers.
WAYS = {
    "clicks": ("click",),
    "remove": ("remove",),
    "trace": ("trace",),
    "trace and remove": ("trace", "remove"),
    "mixed": ("click", "trace", "remove"),
    "by hand": ("trace",),
    "by hand, image alone": ("trace",),
}


def seconds(*what: str) -> float:
    """Seconds for these parts of an action, each at the middle of its span."""
    return sum(sum(SECONDS[part]) / 2 for part in what)


# --- One image


def simulate_click(truth: np.ndarray, mask: np.ndarray, rng: np.random.Generator, jitter: float = 2.0) -> Click | None:
    """The next click: `next_click`, moved by a normal error of `jitter` px (SD) where that stays in the same mistake.

    A click in the exact middle flatters a model. None when nothing is wrong.
    """
    click = next_click(truth, mask)
    if click is None:
        return None
    x, y, label = (int(value) for value in click)
    wrong = truth & ~mask if label else mask & ~truth
    column, row = (int(value) for value in np.rint(rng.normal((x, y), jitter)))
    inside = 0 <= row < wrong.shape[0] and 0 <= column < wrong.shape[1] and wrong[row, column]
    return Click(column, row, label) if inside else Click(x, y, label)


def correct(
    predict: Predict, truth: np.ndarray, clicks: int, rng: np.random.Generator, jitter: float = 2.0
) -> tuple[list[np.ndarray], list[Click]]:
    """The masks with 0, 1, ... `clicks` clicks, and the clicks. Where nothing is wrong any more the mask stays."""
    masks, given = [predict([])], []
    while len(given) < clicks:
        click = simulate_click(truth, masks[-1], rng, jitter)
        if click is None:
            break
        given.append(click)
        masks.append(predict(given))
    return masks + masks[-1:] * (clicks + 1 - len(masks)), given


# --- Many images


def clicks_until(scores: Sequence[float], goal: float) -> int:
    """The first number of clicks after which a score reaches the goal; where it never does, all that were tried."""
    return next((k for k, score in enumerate(scores) if score >= goal), len(scores) - 1)


def correction_terms(rows: Sequence[Mapping], clicks: Sequence[int] = CLICKS) -> dict[str, RatioTerms]:
    """Scores over rows of `protocols.correction_scores`, or of `annotated_row`, whose k is a place in its minutes.

    After k clicks: "root_iou@k", "cl_dice@k", "length_bias@k" (found / true length - 1, pooled) and "length_error@k"
    (mean of |length - true| / true, over images with roots); for each threshold t: "noc@t" (clicks until root IoU
    reaches t, failures counted as all clicks) and "failures@t" (share that does not reach it).
    """
    scores = []
    for row in rows:
        true, own = row["true_length"], {}
        for k in clicks:
            off = row["length"][k] - true
            own |= {f"root_iou@{k}": row["root_iou"][k], f"cl_dice@{k}": row["cl_dice"][k]}
            own |= {f"length_bias@{k}": (off, true), f"length_error@{k}": abs(off) / true if true else NAN}
        for t in THRESHOLDS:
            own |= {f"noc@{t:g}": clicks_until(row["root_iou"], t), f"failures@{t:g}": max(row["root_iou"]) < t}
        scores.append(own)
    return collect(scores)


# --- A person with so many minutes


def annotate_scan(
    truth: np.ndarray,
    image: np.ndarray,
    logits: np.ndarray,
    way: str,
    rng: np.random.Generator,
    minutes: Sequence[float] = MINUTES,
    predict: Predict | None = None,
    false: Sequence[tuple] | None = None,
    jitter: float = 1.0,
) -> dict[str, object]:
    """One scan, corrected in one of `WAYS` as far as the minutes go: the "masks" after each of `minutes`, how often
    each tool was used and taken back ("actions"), and the minute at which nothing was left to correct ("ready").

    The person looks the scan over (`review`), then goes to where most of a root's centre line is missed, or to the
    longest false segment, whichever is more px a second; ends are missed by `jitter` px (SD). A root click or a trace
    that draws more beside the roots than on them is taken back: the click makes way for a trace, the trace for two of
    half its length. The model is asked first as long as half of its last six answers were kept.
    logits: the automatic answer's, float (H, W). predict: `Predictor.correct`, for ways that click. false: what
    `false_segments` finds, where it is known already.
    Raises ValueError for a way that clicks without `predict`, and for minutes that fall.
    """
    if way not in WAYS:
        raise ValueError(f"way {way!r} is unknown: choose one of {', '.join(WAYS)}.")
    tools = WAYS[way]
    if "click" in tools and predict is None:
        raise ValueError(f"the way {way!r} clicks for a model's answer: give predict, or another way.")
    if sorted(minutes) != list(minutes):
        raise ValueError(f"minutes are {minutes}: give them from few to many.")
    seen = np.zeros_like(logits) if way.endswith("image alone") else logits
    mask = np.zeros(truth.shape, bool) if way.startswith("by hand") else logits > 0
    line, around = thinned(truth), dilate(truth, NEAR)
    missed = line & ~dilate(mask, NEAR)
    heap = [(-np.inf, top, left) for top, left in product(*(range(0, side, HOP // 2) for side in truth.shape))]
    heap = heap if {"click", "trace"} & set(tools) else []
    false = list(false_segments(mask, truth) if false is None else false) if "remove" in tools else []
    answer, clicks, kept = mask, [], [True] * 6
    cut, draw = seconds("find", "click"), seconds("find", "click", "reach", "click")
    actions = dict.fromkeys((*tools, "taken back"), 0)
    spent, masks = 0.0, []

    def take(*what: str) -> None:
        """Time passes: where a minute goes by, the mask is the one before this action."""
        nonlocal spent
        spent += sum(rng.uniform(*SECONDS[name]) for name in what) / 60
        while len(masks) < len(minutes) and minutes[len(masks)] < spent:
            masks.append(mask)

    def keep(tool: str, new: np.ndarray, window: tuple[slice, slice]) -> bool:
        """Whether the person keeps what a tool changed in a window: more on the roots than beside them, or the reverse
        for what is removed."""
        nonlocal mask
        actions[tool] += 1
        changed, on_root = new[window] ^ mask[window], around[window]
        right = 2 * (changed & (on_root != (tool == "remove"))).sum() > changed.sum()
        if right:
            mask = new
            missed[window] &= ~dilate(mask[window], NEAR)
        else:
            actions["taken back"] += 1
            take("undo")
        return right

    def aim(place: Sequence[int]) -> tuple[int, int]:
        """(x, y) of a trembling hand that aims at (row, column)."""
        row, column = np.clip(np.rint(rng.normal(place, jitter)).astype(int), 0, np.array(truth.shape) - 1).tolist()
        return column, row

    take("review")
    while len(masks) < len(minutes):
        gain, path = _missed_path(heap, missed, line)
        longest = max(false, default=(0, ()))
        if max(gain, longest[0]) < LEAST:
            break
        take("find", "click")
        if longest[0] / cut >= gain / draw:
            false.remove(longest)
            x, y = aim(longest[1])
            keep("remove", remove_segment(mask, x, y), window_around(mask.shape, (x,), (y,), FAR))
            continue
        missed[tuple(path.T)] = False  # corrected or not, nobody comes back
        if "click" in tools and (sum(kept[-6:]) >= 3 or "trace" not in tools):
            clicks.append(Click(*aim(path[len(path) // 2]), ROOT))
            asked = predict(clicks)
            kept.append(keep("click", np.where(asked != answer, asked, mask), np.s_[:, :]))
            if kept[-1]:
                answer = asked
                continue
            clicks.pop()
            take(*(["click"] if "trace" in tools else []))
        parts = [path] if "trace" in tools else []
        while parts and len(masks) < len(minutes):
            part = parts.pop()
            take("reach", "click")
            edit = Edit("trace", *aim(part[0]), *aim(part[-1]))
            window = window_around(mask.shape, (edit.x, edit.x2), (edit.y, edit.y2), MARGIN)
            if not keep("trace", trace_between(mask, edit, seen, image), window) and len(part) >= 4 * LEAST:
                parts += [part[: len(part) // 2 + 1], part[len(part) // 2 :]]
    ready = spent if len(masks) < len(minutes) else None
    return {"masks": masks + [mask] * (len(minutes) - len(masks)), "actions": actions, "ready": ready}


def false_segments(mask: np.ndarray, truth: np.ndarray) -> list[tuple[int, tuple[int, int]]]:
    """Segments of a mask that lie more beside the roots than on them: by how many px of their centre lines, and the
    middle (row, column) of what lies beside."""
    found, around = [], dilate(truth, NEAR)
    for path in trace(mask, None).paths:
        rows, columns = path.astype(int).T
        outside = np.flatnonzero(~around[rows, columns])
        if (more := 2 * len(outside) - len(path)) > 0:
            middle = outside[len(outside) // 2]
            found.append((more, (int(rows[middle]), int(columns[middle]))))
    return found


def _missed_path(heap: list, missed: np.ndarray, line: np.ndarray) -> tuple[int, np.ndarray]:
    """How many missed px lie on the path along centre lines that has the most of them in a view of `HOP` px, and that
    path, (row, column) (N, 2), from its first missed pixel to its last.

    heap: of (-px, top, left) of the views. What was missed only becomes less, so a view is looked at again only when it
    comes first (lazy greedy, Minoux 1978); here it is kept up to date.
    """
    while heap:
        stored, top, left = heap[0]
        view = (slice(top, top + HOP), slice(left, left + HOP))
        path = _path_through(missed[view], line[view])
        gain = int(missed[view][tuple(path.T)].sum())
        if gain == -stored:
            return gain, path + np.array([top, left])
        if gain < LEAST:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (-gain, top, left))
    return 0, np.zeros((0, 2), int)


def _path_through(missed: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The path along the centre line of the root with most missed pixels that passes most of them."""
    pieces, _ = label(line, EIGHT)
    most = np.bincount(pieces[missed], minlength=1).argmax()
    steps = np.where(pieces == most, np.where(missed, 1, 0.01), -1)
    end = next(iter(np.argwhere(missed & (pieces == most))), None)
    if end is None:
        return np.zeros((0, 2), int)
    for _ in range(2):  # from the farthest pixel to the one farthest from it
        route = MCP_Geometric(steps)
        costs, _ = route.find_costs([tuple(end)])
        end = np.unravel_index(int(np.where(np.isfinite(costs), costs, -1).argmax()), costs.shape)
    path = np.array(route.traceback(end))
    told = np.flatnonzero(missed[tuple(path.T)])
    return path[told[0] : told[-1] + 1] if len(told) else path[:0]


def annotated_row(scan: Scan, done: Mapping) -> dict[str, object]:
    """A scan that `annotate_scan` corrected: its masks' scores after each of the minutes, and what was done."""
    truth, line = scan.mask, thinned(scan.mask)
    scores = {"root_iou": [], "cl_dice": [], "length": []}
    for number, mask in enumerate(done["masks"]):
        if number and mask is done["masks"][number - 1]:
            new = [of[-1] for of in scores.values()]
        else:
            drawn = thinned(mask)
            new = [iou(count(mask, truth)), cl_dice(mask, truth, drawn, line), float(drawn.sum())]
        for of, value in zip(scores.values(), new, strict=True):
            of.append(value)
    about = {"name": scan.name, "tube": scan.tube, "true_length": float(line.sum())}
    return about | scores | {"actions": done["actions"], "ready": done["ready"]}


def summarise(rows: Sequence[Mapping], minutes: Sequence[float], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """One way's scans: [value, low, high] of "cl_dice", "length_error", "length_bias" and "root_iou" (see
    `correction_terms`) by minutes; the 95 % intervals draw whole tubes. Raises ValueError for no row."""
    terms = correction_terms(rows, range(len(minutes)))
    scores = estimates(terms, tube_weights([row["tube"] for row in rows], np.random.default_rng(seed)))
    names = ("cl_dice", "length_error", "length_bias", "root_iou")
    return {f"{at:g}": {name: scores[f"{name}@{k}"] for name in names} for k, at in enumerate(minutes)}


def simulate(
    scans: Sequence[Scan],
    predictor: Predictor,
    ways: Sequence[str] = tuple(WAYS),
    out: str | Path | None = None,
    minutes: Sequence[float] = MINUTES,
    seed: int = 0,
    real: bool = False,
) -> dict[str, object]:
    """The same whole scans, annotated in several of `WAYS`: a results dictionary, "rows" (see `summarise`) by way.

    predictor: the model that answers. out: a folder that keeps a file per scan and way; what is there already, from
    the same weights and settings, is read instead of annotated again. real: whether these are photographs or drawn.
    Raises ValueError for a scan without mask, and what `annotate_scan` raises.
    """
    check_masks(scans)
    about = predictor.about
    setting = about | {"minutes": list(minutes), "seed": seed}
    rows: dict[str, list[dict]] = {way: [] for way in ways}
    for scan in progress(scans, "annotate", "scan", leave=False):
        made_with = setting | {"scan": [zlib.crc32(pixels.tobytes()) for pixels in (scan.image, scan.mask)]}
        found = None
        for way in ways:
            file = Path(out) / way / f"{scan.name}.json" if out else None
            kept = read_json(file) if file and file.is_file() else {}
            if kept.get("setting") != made_with:
                if found is None:
                    predictor.set_image(scan.image)
                    found = predictor.predict()[2][0]
                    false = false_segments(found > 0, scan.mask)
                rng = np.random.default_rng([seed, zlib.crc32(scan.name.encode())])
                done = annotate_scan(scan.mask, scan.image, found, way, rng, minutes, predictor.correct, false)
                kept = {"setting": made_with, "row": annotated_row(scan, done)}
                if file:
                    write_json(file, kept)
            rows[way].append(kept["row"])
    return {
        "protocol": {"name": "simulated annotator", "minutes": list(minutes), "seed": seed},
        "times": {"seconds": SECONDS, "sources": TIME_SOURCES},
        "data": {"real": real, "scans": [scan.name for scan in scans]},
        "model": about,
        "rows": {way: summarise(of, minutes, seed) for way, of in rows.items()},
        "per_scan": rows,
        "provenance": provenance(predictor.model.device),
    }
