"""Fill the tables of README.md and data/results/README.md: `.venv/bin/python benchmarks/readme.py`.

They come from the results files in data/results. A table stands between two comments, `<!-- NAME -->` and
`<!-- end NAME -->`; nobody types a number in there, and a test fails when a page is not what this writes. The minutes
in the table of lessons are filled too, and the bar chart is drawn; README's first picture
is `benchmarks/real_scan.py`'s.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from rootsam_lib import CHECKOUT
from rootsam_lib.checkpoints import ROOTS
from rootsam_lib.lessons import figures
from rootsam_lib.lessons.ablations import REFERENCE, VARIANTS, seed_spread
from rootsam_lib.lessons.claims import RESULTS, claims_table
from rootsam_lib.lessons.runner import load_profile
from rootsam_lib.results import cell, markdown_table, read_json, table, write_text
from rootsam_lib.training.config import PRESETS

PAGES = (CHECKOUT / "README.md", RESULTS / "README.md")
TABLES = {
    "fixed prompts": (
        "root_iou",
        "class_mean_iou",
        "pooled_iou",
        "pooled_dice",
        "cl_dice",
        "meant_iou",
        "meant_cl_dice",
    ),
    "automatic": ("root_iou", "class_mean_iou", "pooled_iou", "pooled_dice", "cl_dice", "soil_false_alarm"),
    "whole scans": (
        "root_iou",
        "class_mean_iou",
        "pooled_iou",
        "pooled_dice",
        "pooled_dice_dilated",
        "precision",
        "recall",
        "cl_dice",
    ),
    "selection": ("clicked_iou", "clicked_cl_dice", "other_iou"),
    "control": ("true_points", "moved_points", "no_points", "true_minus_moved"),
    "correction": ("root_iou@0", "root_iou@10", "root_iou@20", "cl_dice@0", "cl_dice@10", "failures@0.6"),
}


def picture_line(results: Mapping) -> str:
    """What README's first picture shows, and what made it."""
    return (
        f"A real scan ({results['brighter']} times as bright), what **nano** calls root as embedded, and after the "
        f"lessons' training on {results['trained_on']}: no prompt, no tuning, no annotation. The finest roots are "
        "missed, some specks taken for root."
    )


def promise_line(results: Mapping) -> str:
    """What `make tutorial` gives, and in how many minutes."""
    minutes, device = results["minutes"], results["provenance"]["device"]
    return (
        f"**You get** {len(minutes)} executed lessons in {sum(minutes.values()):.0f} minutes ({device}, without "
        "set-up), a model trained by you, and one page of pictures, scores and claims."
    )


def hardware_table(quick: Mapping, real: Mapping, checked: Mapping) -> str:
    """The profiles: what they run, on what, and whether that was done here."""
    device = quick["provenance"]["device"]
    spent = [f"{sum(results['minutes'].values()):.0f} minutes" for results in (quick, real)]
    lessons = ", ".join(sorted(name[:2] for name in real["minutes"]))
    gpu = PRESETS["t4"]
    rows = [
        ["`quick`", "nano, drawn scans", device, f"run here, {spent[0]}"],
        ["`segroot`", "nano, real scans", device, f"run here: {lessons} in {spent[1]}"],
        ["`full`", f"SAM2.1 {gpu.model}, real scans", f"GPU: {gpu.hardware}", "built; **not run here**"],
        ["–", f"SAM2.1 {gpu.model}, random weights", checked["provenance"]["device"], "steps run"],
    ]
    return table(["profile", "model and data", "hardware", "state"], rows)


def about(results: Mapping) -> str:
    """What the real scores were measured on, and what made them."""
    images, model = results["images"], results["models"]["base"]["model"]
    return (
        f"**{results['title']}**, {model}; {images['patches_with_roots']} patches with roots and "
        f"{images['patches_without_roots']} without, of {images['tubes']} tubes."
    )


def summary_table(results: Mapping) -> str:
    """One row per model, and of every protocol the score to look at first."""
    columns = {
        "prompted, root IoU": ("fixed prompts", "root_iou"),
        "automatic, root IoU": ("automatic", "root_iou"),
        "whole scans, pooled Dice": ("whole scans", "pooled_dice"),
        "whole scans, centre-line Dice": ("whole scans", "cl_dice"),
        "corrected, root IoU": ("correction", "root_iou@10"),
    }
    rows = []
    for name in results["tables"]["automatic"]:
        scores = [results["tables"][protocol].get(name, {}).get(score) for protocol, score in columns.values()]
        rows.append([name, *(cell(score) if score else "–" for score in scores)])
    return table(["", *columns], rows)


def minutes_line(results: Mapping) -> str:
    """How long the lessons took that make the tables."""
    told = ", ".join(f"lesson {name[:2]} {minutes:.0f}" for name, minutes in results["minutes"].items())
    total = sum(results["minutes"].values())
    return f"Minutes on {results['provenance']['device']}: {told}; {total:.0f} in all."


def whole_table() -> str:
    """Whole real scans by `benchmarks/real_scans.py`: every kind of model over its seeds, each paired with Stage 1 of
    the same seed; what has one training, with its intervals over tubes."""
    every, scores = read_json(RESULTS / "segroot-whole.json")["rows"], ("pooled_dice", "root_iou", "cl_dice")
    kinds: dict[str, list[str]] = {}
    rows = []
    for name in every:
        if not any(part in name for part in (", draw ", "profile ", "stage2 on ", "stage1 on ")):  # elsewhere
            kinds.setdefault(name.split(", seed ")[0], []).append(name)
    for kind, names in kinds.items():
        many = len(names) > 1
        row = [f"{kind}, {len(names)} seeds" if many else names[0]]
        for score in scores:
            own = [every[name][score] for name in names]
            row.append(seed_cell([value[0] for value in own]) if many else cell(own[0]))
            firsts = [every[f"stage1{name.removeprefix(kind)}"][score] for name in names] if many else []
            apart = [value[0] - first[0] for value, first in zip(own, firsts, strict=False)]
            row.append(seed_cell(apart) if many and kind != "stage1" else "–")
        rows.append(row)
    return table(["", *(text for s in scores for text in (f"`{s}`", "against Stage 1"))], rows)


def protocol_seeds_table() -> str:
    """What lesson 05's protocols give with three seeds, by `benchmarks/protocol_seeds.py`."""
    results = read_json(RESULTS / "segroot-seeds.json")
    chosen = {
        "ten points": ("tables", "fixed prompts", "root_iou"),
        "gain over base, class-mean IoU": ("gains", "fixed prompts", "class_mean_iou_relative"),
        "no point": ("tables", "automatic", "root_iou"),
        "patches of soil with a false root": ("tables", "automatic", "soil_false_alarm"),
        "one click: its root": ("tables", "selection", "clicked_iou"),
        "true minus moved points": ("tables", "control", "true_minus_moved"),
        "after ten corrections": ("tables", "correction", "root_iou@10"),
    }
    rows = []
    for told, (part, protocol, score) in chosen.items():
        cells = [results[part][protocol][stage][score] for stage in ("stage1", "stage2")]
        rows.append([told, f"`{score}`", *(cell(values) for values in cells)])
    for told, trait in (("length", "root_length_mm"), ("area", "root_area_mm2"), ("mean diameter", "mean_diameter_mm")):
        for score in ("r2", "relative_bias"):
            values = cell(results["traits"][trait][score])
            rows.append([f"{told} of whole scans", f"`{score}`", "–", values])
    return table(["", "", "Stage 1", "Stage 2"], rows)


def few_line() -> str:
    """What no annotated scan gives, and five, of what all give: each by the profile that a reader would run."""
    results = read_json(RESULTS / "segroot-whole.json")
    none, whole = results["rows"][ROOTS]["pooled_dice"][0], results["seeds"]["stage1"]["pooled_dice"][0]
    five = results["seeds"]["profile mine, 5 scans"]["pooled_dice"][0]
    return (
        f"Pooled Dice by [annotated scans](data/results/README.md#how-many-scans): none {none:.2f} (nano-roots), "
        f"5 {five:.2f} (`mine`), 31 {whole:.2f} (`segroot`)."
    )


def grown_table() -> str:
    """Stage 1 trained on raw and on grown masks, scored against both: three seeds."""
    seeds = read_json(RESULTS / "segroot-whole.json")["seeds"]
    scores = ("pooled_dice", "pooled_dice_dilated", "cl_dice")
    rows = []
    for name, kind in (("raw masks", "stage1"), ("masks grown by one pixel", "stage1 on grown masks")):
        cells = [cell(seeds[kind][score]) for score in scores]
        rows.append([f"trained on {name}", *cells])
    return table(["", *(f"`{score}`" for score in scores)], rows)


def folder_table(results: Mapping) -> str:
    """Seconds a scan of whole folders: by the way that they are done, and by their number."""
    rows = [
        [f"2550 x 2273 px, {row['way']}", f"{row['seconds_a_scan']:.1f}", str(row["mask_pixels_that_differ"])]
        for row in results["ways"]
    ]
    rows += [
        [f"small, a model that costs nothing, {row['scans']} scans", f"{row['first_s_a_scan']:.3f}", "–"]
        for row in results["growth"]
    ]
    return table([results["provenance"]["device"], "seconds a scan", "mask pixels that differ"], rows)


def reach_table() -> str:
    """How far from a click an answer reaches, by stage: covered shares of long roots' centre lines."""
    results, rows = read_json(RESULTS / "segroot-reach.json"), []
    for name, shares in results["rows"].items():
        rows.append([name, *(cell(value) for value in shares.values())])
        if apart := results["against the first"].get(name):
            rows.append(["against Stage 1", *(cell(value) for value in apart.values())])
    return table(["", *results["rows"][name]], rows)


def limit_line() -> str:
    """How far one click could come with the automatic masks of Stage 1."""
    mean, low, high = read_json(RESULTS / "segroot-whole.json")["seeds"]["stage1"]["perfect_selection"]
    return f"Perfect selection from Stage 1's automatic masks, three seeds: IoU {mean:.3f} ({low:.3f} to {high:.3f})."


def own_table() -> str:
    """Five scans with the profile for own images, and with quick's recipe: mean and range over draws, or
    one draw's interval over tubes; paired."""
    results, rows = read_json(RESULTS / "segroot-whole.json"), []
    for told, part, pattern in (
        ("recipe of `quick`", "rows", r"profile quick, 5 scans, seed \d+"),
        ("`mine`", "rows", r"profile mine, 5 scans, seed \d+"),
        ("`mine`, against it", "differences", r"profile mine, (5 scans, seed \d+) - profile quick, \1"),
    ):
        own = [row for name, row in results[part].items() if re.fullmatch(pattern, name)]
        scores = ("pooled_dice", "root_iou", "cl_dice", "length_error")
        one = [cell(own[0][score]) for score in scores] if len(own) == 1 else None
        rows.append([told, len(own), *(one or (seed_cell([row[score][0] for row in own]) for score in scores))])
    return table(["", "draws", "pooled Dice", "root IoU", "clDice", "length error"], rows)


def curve_table() -> str:
    """The learning curve: each score's mean and range over draws, by the number of scans; and what drawn roots first
    are better or worse than nano on the same draw."""
    results, cells = read_json(RESULTS / "segroot-whole.json")["rows"], {}
    for model, number, row in figures.curve_rows({"rows": results}):
        cells.setdefault((number, model), []).append(row)
    rows = []
    for (number, model), own in sorted(cells.items()):
        scores = [seed_cell([row[score][0] for row in own]) for score in figures.CURVE_SCORES]
        rows.append([number, figures.CURVE_STYLES[model][3], len(own), *scores])
        if model == "nano-roots":
            draws = [f", {number} scans, draw {draw}" for draw in range(len(own))]
            paired = [
                [results[f"{model}{draw}"][score][0] - results[f"nano{draw}"][score][0] for draw in draws]
                for score in figures.CURVE_SCORES
            ]
            rows.append([number, "– that, less nano on the same draw", len(own), *map(seed_cell, paired)])
    return table(["scans", "", "draws", *figures.CURVE_SCORES.values()], rows)


def context_table() -> str:
    """Stage 2 against Stage 1 gone on for as many pixels: each score over seeds, and paired by seed."""
    results, kinds = read_json(RESULTS / "segroot-whole.json"), ("stage1", "stage1 continued", "stage2")
    seeds, rows = [name.removeprefix("stage2") for name in results["rows"] if name.startswith("stage2, seed")], []
    for score in ("pooled_dice", "root_iou", "cl_dice", "pieces_per_root", "betti0_error"):
        own = [seed_cell([results["rows"][kind + seed][score][0] for seed in seeds]) for kind in kinds]
        paired = [-results["differences"][f"stage1 continued{seed} - stage2{seed}"][score][0] for seed in seeds]
        rows.append([f"`{score}`", *own, seed_cell(paired)])
    return table(["", "Stage 1", "Stage 1 continued", "Stage 2", "Stage 2 against it"], rows)


def gap_table() -> str:
    """Stage 2 on scans with gaps in roots against the scans as they are: one seed, intervals over tubes."""
    results, kinds = read_json(RESULTS / "segroot-whole.json"), ("as they are", "with gaps")
    plain, gaps = (f"stage2 on scans {kind}, seed 0" for kind in kinds)
    shares, apart = results["rows"], results["differences"][f"{gaps} - {plain}"]
    scores = ("pooled_dice", "root_iou", "cl_dice", "precision", "recall", "pieces_per_root", "betti0_error")
    rows = [[f"`{s}`", cell(shares[plain][s]), cell(shares[gaps][s]), cell(apart[s])] for s in scores]
    return table(["", *(f"Stage 2 on scans {kind}" for kind in kinds), "paired difference"], rows)


def seed_cell(values: Sequence[float]) -> str:
    """The mean over seeds, and their range; of a single one the number alone."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def gpu_table(results: Mapping) -> str:
    """What `benchmarks/gpu_check.py` measured on a GPU."""
    places = {
        "live": "nowhere (encoded every time)",
        "memory": "in RAM",
        "pinned": "in pinned RAM",
        "gpu": "on the GPU",
    }
    rows = [
        [
            f"encoder of SAM2.1 {row['model']}, {row['side']} px, {row['batch']} together",
            f"{row['images_per_second']:.0f} a second",
        ]
        for row in results["encoder"]
    ]
    rows += [
        [
            f"step of 8 patches, features {places[row['place']]}",
            f"{row['seconds']:.2f} s; GPU busy {row['busy_share']:.0%}",
        ]
        for row in results["step"]
    ]
    rows += [
        [
            f"{row['steps']} steps in {row['precision'].replace('no', 'fp32')}, features in RAM, a T4's memory at most",
            f"{row['seconds_a_step']:.2f} s a step, {row['peak_gb']:.1f} GB; loss {row['first_loss']:.2f} to "
            f"{row['last_loss']:.2f}",
        ]
        for row in results["precisions"]
    ]
    rows += [
        [f"nano, a whole scan, {row['batch']} tiles together", f"{row['seconds_a_scan']:.1f} s"]
        for row in results["whole scans"]
    ]
    return table([results["provenance"]["device"], ""], rows)


def width_table(results: Mapping) -> str:
    """Scores by the width of roots, at the training's input scale and at the one that was found."""
    rows = []
    for r in results["rows"]:
        both = [
            f"{r[way][score]:.3f}" for score in ("root_iou", "cl_dice") for way in ("at_the_trainings_scale", "fitted")
        ]
        rows.append([r["images"], f"{r['true_width_px']:.0f} px", f"{r['input_scale']:.2f}", *both])
    head = [
        "roots",
        "true width",
        "scale found",
        "`root_iou`, training's scale",
        "found",
        "`cl_dice`, training's scale",
    ]
    return table([*head, "found"], rows)


def traits_table(results: Mapping) -> str:
    """Agreement of the traits of predicted and true masks, scan by scan."""
    named = {"root_length_mm": "length, mm", "root_area_mm2": "area, mm²", "mean_diameter_mm": "mean diameter, mm"}
    calibrated = results["length_times_factor"]
    traits = {named[trait]: row for trait, row in results["agreement"].items()}
    traits[f"length times {calibrated['factor']:.3f}, fitted on the val scans"] = calibrated
    rows = []
    for name, r in traits.items():
        bias = cell([r[f"relative_bias{end}"] for end in ("", "_low", "_high")], form="+.0%")
        rows.append([name, f"{r['r2']:.2f}", f"{r['r2_fitted']:.2f}", bias, r["scans"]])
    return table(["trait", "R²", "R² of a fitted line", "bias", "scans"], rows)


def calibration_table(results: Mapping) -> str:
    """What traits are worth after a calibration on scans of other tubes."""
    named = {"root_length_mm": "length", "root_area_mm2": "area", "mean_diameter_mm": "mean diameter"}
    rows = []
    for k, traits in results["calibrated_on"].items():
        for key, row in traits.items():
            trait = named[key.removesuffix(", one factor")] + (", one factor" if key.endswith("factor") else "")
            bias = "{:+.1%} ({:+.0%} to {:+.0%})".format(*row["relative_bias"])
            single = "{:+.0%} to {:+.0%}".format(*row["relative_bias_of_single_calibrations"])
            rows.append([k, trait, cell(row["r2"], form=".2f"), bias, single])
    return table(["annotated scans", "trait", "R²", "bias", "95 % of single calibrations"], rows)


def looks_table(results: Mapping) -> str:
    """Root IoU and clDice by look of the images and by what a stage was trained with, means over seeds; and the root
    IoU of the last kind against the first, paired by seed."""
    seeds: dict[str, list[str]] = {}
    for name in results["models"]:
        kind, _, seed = name.partition(", seed ")
        seeds.setdefault(kind, []).append(seed)
    scores = {((row["look"], row["images"]), row["trained_with"]): row for row in results["rows"]}
    places = dict.fromkeys((row["look"], row["images"]) for row in results["rows"])
    first, last = "five families", load_profile("segroot")["FAMILIES"]
    kinds, rows = [first, *(kind for kind in seeds if kind not in (first, last)), last], []
    for place in places:
        row = [*place]
        for kind in kinds:
            own = [scores[place, f"{kind}, seed {seed}"] for seed in seeds[kind]]
            row.append(" / ".join(f"{np.mean([each[score] for each in own]):.2f}" for score in ("root_iou", "cl_dice")))
        both = sorted({*seeds[first]} & {*seeds[last]})
        gains = [
            np.subtract(*(scores[place, f"{kind}, seed {seed}"]["root_iou"] for kind in (last, first))) for seed in both
        ]
        rows.append([*row, seed_cell(gains)])
    told = [f"{kind} ({len(seeds[kind])} seed{'s' * (len(seeds[kind]) > 1)})" for kind in kinds]
    return table(["look", "scans", *told, "root IoU, last against first"], rows)


def brightness_table(results: Mapping) -> str:
    """Root IoU / clDice of darker and brighter scans, as they are and with the gain found; Stage 1 over seeds."""
    rows = {(row["factor"], row["images"], row["model"]): row for row in results["rows"]}
    stages, lines = sorted(set(results["models"]) - {ROOTS}), []
    for factor, images in dict.fromkeys((row["factor"], row["images"]) for row in results["rows"]):
        line = [f"{factor:g} times", images]
        for models in ([ROOTS], stages):
            own = [rows[factor, images, model] for model in models]
            line.append(f"{np.mean([row['gain'] for row in own]):.2g}")
            for kind in ("", "fitted_"):
                both = (np.mean([row[kind + score] for row in own]) for score in ("root_iou", "cl_dice"))
                line.append(" / ".join(f"{value:.2f}" for value in both))
        lines.append([*line, seed_cell([row["fitted_root_iou"] - row["root_iou"] for row in own])])
    head = [
        cell
        for told in (ROOTS, f"Stage 1 from it, {len(stages)} seeds")
        for cell in (f"{told}: gain", "as it is", "shown so")
    ]
    return table(["as bright", "scans", *head, "root IoU by it"], lines)


def widths_line(results: Mapping) -> str:
    """How wide roots look in scans, model and true masks."""
    image, true, model = results["widths_px"]["mean"]
    of_true, of_model = results["widths_px"]["correlation_with_image"]
    return (
        f"Across the same lines, roots look {image:.1f} px wide in the scans (full width at half height), the model "
        f"draws them {model:.1f} px wide, the true masks {true:.1f} px. From scan to scan the model's width follows "
        f"the image's (correlation {of_model:.2f}), the true masks' less ({of_true:.2f}): the hand that drew a mask is "
        "part of its area and diameter."
    )


def annotator_table(results: Mapping) -> str:
    """What the simulated annotator's minutes are worth, by way."""
    rows = []
    for way, after in results["rows"].items():
        error = [cell(at["length_error"], form=".0%") for at in after.values()]
        scores = [" → ".join(f"{at[name][0]:.3f}" for at in after.values()) for name in ("cl_dice", "root_iou")]
        rows.append([way, scores[0], " → ".join(error), scores[1]])
    minutes = ", ".join(next(iter(results["rows"].values())))
    return table(["", f"clDice after {minutes} minutes", "error of root length", "root IoU"], rows)


ABLATED = {
    "ten points, `root_iou`": ("fixed prompts", "root_iou"),
    "no point, `root_iou`": ("automatic", "root_iou"),
    "no point, `pooled_dice`": ("automatic", "pooled_dice"),
    "one click, `clicked_iou`": ("selection", "clicked_iou"),
    "`true_minus_moved`": ("control", "true_minus_moved"),
}


def ablation_table(results: Mapping) -> str:
    """The reference's scores, and each variant's paired differences from them."""
    rows = []
    for name in results["variants"]:
        first = [f"{results['tables'][t][name][score][0]:.3f}" for t, score in ABLATED.values()]
        gains = [results["gains"][t].get(name) for t, _ in ABLATED.values()]
        shown = [cell(g[score]) if g else "–" for g, (_, score) in zip(gains, ABLATED.values(), strict=True)]
        rows.append([name, VARIANTS[name].question, *(first if name == REFERENCE else shown)])
    return table(["", "what it tries", *ABLATED], rows)


def seeds_table(results: Mapping) -> str:
    """The spread of the reference over seeds, and which other variants lie outside of all of them."""
    names = list(results["variants"])
    seeds = [name for name in names if name == REFERENCE or "seed" in VARIANTS[name].changes]
    rows = []
    for told, (protocol, score) in ABLATED.items():
        scores = results["tables"][protocol]
        values = {name: scores[name][score][0] for name in names}
        low, high = (find(values[name] for name in seeds) for find in (min, max))
        below = [f"{name} {values[name]:.3f}" for name in names if values[name] < low]
        above = [f"{name} {values[name]:.3f}" for name in names if values[name] > high]
        spread = "{:.3f} ± {:.3f}".format(*seed_spread(scores, score)) + f" ({low:.3f} to {high:.3f})"
        rows.append([told, spread, *(", ".join(part) or "–" for part in (below, above))])
    spread = f"{len(seeds)} seeds: mean ± standard deviation (range)"
    return table(["", spread, "below every seed", "above every seed"], rows)


def speed_table(results: Mapping) -> str:
    """Seconds a training step, and their ratios."""
    rows = []
    for row in results["rows"]:
        seconds = [f"{row[kind]:.3f}" for kind in "abc"]
        ratios = f"{row['a'] / row['b']:.1f}", f"{row['b'] / row['c']:.2f}"
        rows.append([f"{row['model']}, {row['size']} px, batch {row['batch']}", *seconds, *ratios])
    kinds = ["(a) encoder in every step, s", "(b) feature bank, s", "(c) decoder alone, s"]
    return table(["", *kinds, "a / b", "b / c"], rows)


def model_speed_table(results: Mapping) -> str:
    """Seconds for one image, and for a whole scan."""
    rows = [
        [f"{row['model']}, {work} {row['size']} px", f"{row[f'{work}_s']:.3f}"]
        for work in ("encode", "decode")
        for row in results["models"]
    ]
    height, width = results["scan"]
    for row in results["scans"]:
        scale = row.get("input_scale") or row["zoom"]  # as earlier runs called it
        how = f"tiles enlarged {scale:g} times{', four flips' if row['flips'] else ''}"
        rows.append([f"nano, whole scan of {width} x {height} px, {how}", f"{row['seconds']:.1f}"])
    return table([f"{results['threads']} threads", "seconds"], rows)


def latency_line(results: Mapping) -> str:
    """How long a click takes in the browser."""
    ms = results["milliseconds"]
    told = f"median {ms['median']}, nine in ten within {ms['p90']}, longest {ms['max']} ({len(results['each'])} clicks)"
    return f"{results['title']}, {results['threads']} threads: {told}."


def bank_table(results: Mapping) -> str:
    """Scores with the feature bank and with live encoding, over seeds."""
    rows = []
    for way in dict.fromkeys(row["way"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["way"] == way]
        scores = [np.array([row[key] for row in own]) for key in ("root_iou", "automatic_root_iou")]
        rows.append([way, len(own), *(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in scores)])
    return table(["", "seeds", "root IoU, prompted", "root IoU, automatic"], rows)


def preset_table() -> str:
    """The presets of `stage_pair`."""
    rows = []
    for key, p in PRESETS.items():
        batch, state = f"{p.batch_size} / {p.batch_size // 2}", "run here" if p.ran else "**not run here**"
        bank = f"{p.bank_gb:g} GB"
        rows.append([f"`{key}`", p.hardware, p.model, batch, p.micro_batches, bank, p.precision, state])
    head = ["`HARDWARE`", "for", "model that fits", "batch, Stage 1 / 2", "parts of a batch", "feature bank, at most"]
    return table([*head, "precision", ""], rows)


def blocks() -> dict[str, str]:
    """Every table by its name."""
    names = ("nano", "nano-frozen", "ablations")
    real, frozen, ablations = (read_json(RESULTS / f"segroot-{name}.json") for name in names)
    quick, segroot = (read_json(RESULTS / f"tutorial-{name}.json") for name in ("quick", "segroot"))
    return {
        "picture": picture_line(read_json(RESULTS / "real-scan.json")),
        "promise": promise_line(quick),
        "claims": claims_table(),
        "hardware": hardware_table(quick, segroot, read_json(RESULTS / "gpu-check.json")),
        "about": about(real),
        "summary": summary_table(real),
        **{name: markdown_table(real, name, columns) for name, columns in TABLES.items()},
        "frozen, fixed prompts": markdown_table(frozen, "fixed prompts", TABLES["fixed prompts"][:5]),
        "frozen, whole scans": markdown_table(frozen, "whole scans", TABLES["whole scans"]),
        "minutes": minutes_line(segroot),
        "dilated": grown_table(),
        "traits": traits_table(read_json(RESULTS / "segroot-traits.json")),
        "calibration": calibration_table(read_json(RESULTS / "segroot-calibration.json")),
        "widths": widths_line(read_json(RESULTS / "segroot-calibration.json")),
        "annotator": annotator_table(read_json(RESULTS / "segroot-annotator.json")),
        "ablations": ablation_table(ablations),
        "detail": ablation_table(read_json(RESULTS / "segroot-ablations-cpu.json")),
        "recipe": ablation_table(read_json(RESULTS / "segroot-ablations-recipe.json")),
        "seeds": seeds_table(ablations),
        "latency": latency_line(read_json(RESULTS / "click-latency.json")),
        "model speed": model_speed_table(read_json(RESULTS / "model-speed.json")),
        "speed": speed_table(read_json(RESULTS / "training-speed.json")),
        "bank": bank_table(read_json(RESULTS / "bank-against-live.json")),
        "presets": preset_table(),
        "whole": whole_table(),
        "context": context_table(),
        "gaps": gap_table(),
        "reach": reach_table(),
        "protocol seeds": protocol_seeds_table(),
        "curve": curve_table(),
        "own": own_table(),
        "limit": limit_line(),
        "folder": folder_table(read_json(RESULTS / "whole-folder.json")),
        "few": few_line(),
        "looks": looks_table(read_json(RESULTS / "segroot-looks.json")),
        "brightness": brightness_table(read_json(RESULTS / "segroot-brightness.json")),
        "width": width_table(read_json(RESULTS / "root-width.json")),
        "gpu": gpu_table(read_json(RESULTS / "gpu-check.json")),
    }


def filled(page: str) -> str:
    """A page with every table and every lesson's minutes as the results files have them."""
    for name, text in blocks().items():
        between = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        page = re.sub(between, lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL)
    for lesson, minutes in read_json(RESULTS / "tutorial-quick.json")["minutes"].items():
        page = re.sub(rf"(\(notebooks/{lesson}\.ipynb\) \| [^|]* \| )[\d.]+ ", rf"\g<1>{minutes:.1f} ", page)
    return page


if __name__ == "__main__":
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))
        print(f"filled {path.relative_to(CHECKOUT)}")
    figures.use_style()
    curve, _ = figures.learning_curve(read_json(RESULTS / "segroot-whole.json"))
    curve.savefig(RESULTS / "learning-curve.png", dpi=110, bbox_inches="tight")
    figures.score_bars(read_json(RESULTS / "segroot-nano.json")).savefig(RESULTS / "segroot-nano.png", dpi=110)
