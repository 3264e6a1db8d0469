"""Whole real scans without any prompt: `.venv/bin/python benchmarks/real_scans.py WORDS`: see below.

What each word trains, all as the profile `segroot` sets it, on SegRoot's train split, scored on its valid split:
seeds: both stages with three seeds. peers: a U-Net on the frozen trunk and one trained whole, as long as Stage 1.
context: Stage 1 continued on 512 px patches for as many steps' pixels as Stage 2 has, against Stage 2 (three seeds).
gaps: Stage 2 on scans in which roots are hidden in places, against Stage 2 on the scans as they are; both go on from
Stage 1 at half its epochs.
curve: Stage 1, Stage 1 with the poster's augmentation, Stage 1 from nano-roots (trained on drawn scans first) and the
U-Net trained whole on 1, 2, 5, 10, 20 and all scans (three draws by tube of up to 10), each for as many steps as Stage
1 has in half its epochs: few scans are repeated, every time in views of their own. roots: Stage 1 from nano-roots as it
ships.
few: Stage 1 of the profiles mine and quick on five scans, for their own number of epochs (each seed draws other tubes).
augmentation: Stage 1 without any, and with the poster's. dilated: Stage 1 on masks grown by one pixel, for the dilated
score. Rows already in the results file stay as they are.
Every trained model and every mask is kept in runs/real, so an interrupted call goes on where it was. Writes
data/results/segroot-whole.json: each row's scores with intervals by tube, paired differences, and the range of seeds.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from rootsam_lib.checkpoints import ROOTS, build_sam
from rootsam_lib.data.datasets import describe, load_parts
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.masks import read_mask
from rootsam_lib.data.scans import Scan, tile
from rootsam_lib.evaluation.bootstrap import collect, difference, estimates, tube_weights
from rootsam_lib.evaluation.peers import train_unet
from rootsam_lib.evaluation.protocols import DEFINITIONS, about_predictor, score_mask
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.lessons.parameters import notebook_parameters
from rootsam_lib.lessons.runner import NOTEBOOKS, load_profile
from rootsam_lib.metrics import dilate, label_roots, thinned
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.prompts import point_probability
from rootsam_lib.results import RUNS, progress, provenance, read_json, write_image, write_json
from rootsam_lib.training.config import StageConfig, stage_pair
from rootsam_lib.training.loop import train_stage
from rootsam_lib.training.stage import Stage
from rootsam_lib.traits import root_length_mm

FILE = RESULTS / "segroot-whole.json"
FOLDER = RUNS / "real"
SIZES, DRAWS, FEW, DRAWN = (1, 2, 5, 10, 20), 3, 10, 24  # of the learning curve; draws where a size is at most FEW
UNET_SCALE = 1.0  # a U-Net gives a logit for every pixel that it sees, and 1.5 times as large takes twice as long
Row = tuple[str, Callable[[], Predictor]]


def profile_pair(seed: int, profile: str = "segroot", **changed: object) -> tuple[StageConfig, StageConfig]:
    """Both stages as a profile sets them, but for what is given."""
    values = notebook_parameters(NOTEBOOKS / "03_stage1.ipynb") | load_profile(profile)
    names = ("VIEWS", "INPUT_SCALE", "DETAIL", "LR", "SCHEDULE", "FAMILIES")
    given = {name.lower(): values[name] for name in names} | {"seed": seed} | changed
    return stage_pair(values["MODEL"], (values["STAGE1_EPOCHS"], values["STAGE2_EPOCHS"]), **given)


def stages(parts: Mapping[str, Sequence[Scan]], seed: int) -> tuple[Stage, Stage]:
    """Both stages, trained or read."""
    first, second = profile_pair(seed)
    stage1 = trained(first, parts)
    return stage1, train_stage(second, parts["train"], parts["val"], FOLDER, base=stage1.weights)


def ask(stage: Stage) -> Predictor:
    """A stage on tiles of 512 px, whatever it was trained on: the tables' setting."""
    return load_predictor(stage.folder, tile_size=512)


def trunk() -> Mapping[str, object]:
    """The weights that a U-Net's encoder starts from: nano's."""
    return build_sam("nano").sam.image_encoder.trunk.backbone.state_dict()


def seed_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Base, nano-roots, and both stages with each seed."""
    yield "base", lambda: Predictor(build_sam("nano"), profile_pair(0)[0].input_scale)
    yield ROOTS, lambda: load_predictor(ROOTS, tile_size=512)
    for seed in seeds:
        yield f"stage1, seed {seed}", lambda seed=seed: ask(stages(parts, seed)[0])
        yield f"stage2, seed {seed}", lambda seed=seed: ask(stages(parts, seed)[1])


def peer_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """U-Nets, the frozen one and the whole one."""
    for seed in seeds:
        config = replace(profile_pair(seed)[0], input_scale=UNET_SCALE)
        for name, frozen in (("U-Net, frozen trunk", True), ("U-Net", False)):
            folder = FOLDER / f"{name}, seed {seed}"
            yield (
                f"{name}, seed {seed}",
                lambda c=config, f=frozen, p=folder: train_unet(trunk(), f, c, parts["train"], p),
            )


def context_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Stage 1 continued at Stage 2's rate, on as many pixels as Stage 2 sees."""
    for seed in seeds:

        def continued(seed: int = seed) -> Predictor:
            first, second = profile_pair(seed)
            longer = replace(first, epochs=second.epochs, lr=second.lr)
            stage1, _ = stages(parts, seed)
            return ask(train_stage(longer, parts["train"], parts["val"], FOLDER, base=stage1.weights))

        yield f"stage1 continued, seed {seed}", continued


def with_gaps(scan: Scan, rng: np.random.Generator, every: int = 300) -> Scan:
    """The scan with soil from elsewhere pasted, with soft edges, over one place of a root for every `every` px of
    root length, 16 to 48 px wide; its mask stays, so the model is to see the root behind it."""
    image, soil = scan.image.astype(np.float32), distance_transform_edt(~scan.mask)
    rows, columns = np.nonzero(scan.mask)
    for place in rng.choice(rows.size, int(thinned(scan.mask).sum()) // every, replace=False):
        half = int(rng.integers(8, 25))
        free = np.argwhere(soil[half:-half, half:-half] > 1.5 * half)  # corners of windows without any root
        row, column = (
            int(np.clip(at[place], half, n - half)) for at, n in zip((rows, columns), soil.shape, strict=True)
        )
        if not len(free):
            continue
        there = rng.choice(free)
        down, right = np.ogrid[-half:half, -half:half]
        share = np.clip(2 * (1 - np.hypot(down, right) / half), 0, 1)[..., None].astype(np.float32)
        window = image[row - half : row + half, column - half : column + half]
        window += share * (scan.image[there[0] : there[0] + 2 * half, there[1] : there[1] + 2 * half] - window)
    return replace(scan, image=image.round().astype(np.uint8))


def gap_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Long-range gaps: does Stage 2 learn from larger patches to join what is broken?"""
    for seed in seeds:
        first, second = profile_pair(seed)
        half = replace(first, epochs=first.epochs // 2)

        def after(train: Sequence[Scan], half: StageConfig = half, second: StageConfig = second) -> Predictor:
            return ask(trained(second, {**parts, "train": train}, trained(half, parts).weights))

        def with_all_gaps(after: Callable[..., Predictor] = after) -> Predictor:
            return after([with_gaps(s, np.random.default_rng([11, n])) for n, s in enumerate(parts["train"])])

        yield f"stage2 on scans as they are, seed {seed}", partial(after, parts["train"])
        yield f"stage2 on scans with gaps, seed {seed}", with_all_gaps


def dilated_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Stage 1 on grown masks."""
    grown = {name: [replace(s, mask=dilate(s.mask)) for s in scans] for name, scans in parts.items()}
    for seed in seeds:
        config = profile_pair(seed)[0]
        yield f"stage1 on grown masks, seed {seed}", lambda c=config: ask(trained(c, grown))


def augmentation_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Stage 1 on the patches as they are, and with the poster's augmentation."""
    for seed in seeds:
        for name, families in (("without augmentation", ()), ("with the poster's augmentation", None)):
            config = profile_pair(seed, families=families)[0]
            yield f"stage1 {name}, seed {seed}", lambda c=config: ask(trained(c, parts))


def roots_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Stage 1 from nano-roots: drawn roots first, then real ones."""
    for seed in seeds:
        config = replace(profile_pair(seed)[0], model=ROOTS)
        yield f"stage1 from nano-roots, seed {seed}", lambda c=config: ask(trained(c, parts))


def trained(config: StageConfig, parts: Mapping, base: str | Path = "default") -> Stage:
    """A stage from the base model, or from other weights."""
    return train_stage(config, parts["train"], parts["val"], FOLDER, base=base)


def nano_roots() -> Path:
    """Weights of nano after drawn scans with true roots: what a user without one annotated scan could start from."""
    drawn = {"train": synthetic_scans("train", DRAWN, height=1536, width=1536), "val": synthetic_scans("valid", 8)}
    return trained(profile_pair(0)[0], drawn).weights


def curve_rows(parts: Mapping, _seeds: Sequence[int]) -> Iterator[Row]:
    """Few scans: chosen tube by tube, so that a small number shows few places."""
    number = len(parts["train"])
    for size in (*SIZES, number):
        for draw in range(DRAWS if size <= FEW else 1):
            config = replace(profile_pair(draw)[0], epochs=profile_pair(draw)[0].epochs // 2)
            chosen = by_tube(parts["train"], size, np.random.default_rng([7, draw]))
            few = {**parts, "train": (chosen * number)[:number]}
            yield f"nano, {size} scans, draw {draw}", lambda c=config, p=few: ask(trained(c, p))
            poster = replace(config, families=None)
            yield f"nano, poster's augmentation, {size} scans, draw {draw}", lambda c=poster, p=few: ask(trained(c, p))
            yield f"nano-roots, {size} scans, draw {draw}", lambda c=config, p=few: ask(trained(c, p, nano_roots()))
            name, flat = f"U-Net, {size} scans, draw {draw}", replace(config, input_scale=UNET_SCALE)
            yield name, lambda c=flat, p=few, n=name: train_unet(trunk(), False, c, p["train"], FOLDER / n)


def few_rows(parts: Mapping, seeds: Sequence[int]) -> Iterator[Row]:
    """Five scans, as a user has them, each draw of other tubes."""
    for seed in seeds:
        own = {**parts, "train": by_tube(parts["train"], 5, np.random.default_rng([7, seed]))}
        for profile in ("quick", "mine"):
            config = profile_pair(seed, profile)[0]
            yield f"profile {profile}, 5 scans, seed {seed}", lambda c=config, p=own: ask(trained(c, p))


def by_tube(scans: Sequence[Scan], size: int, rng: np.random.Generator) -> list[Scan]:
    """`size` scans, all of one tube before the next tube's."""
    tubes = rng.permutation(sorted({scan.tube for scan in scans})).tolist()
    ordered = sorted(rng.permutation(len(scans)).tolist(), key=lambda i: tubes.index(scans[i].tube))
    return [scans[i] for i in ordered[:size]]


ROWS = {"seeds": seed_rows, "peers": peer_rows, "context": context_rows, "curve": curve_rows}
ROWS |= {"dilated": dilated_rows, "augmentation": augmentation_rows, "roots": roots_rows}
ROWS |= {"few": few_rows, "gaps": gap_rows}


def masks_of(name: str, make: Callable[[], Predictor], scans: Sequence[Scan]) -> tuple[list[np.ndarray], dict]:
    """A row's masks of whole scans, from the disk or made now, and what made them."""
    folder = FOLDER / "masks" / name
    files, note = [folder / f"{scan.name}.png" for scan in scans], folder / "about.json"
    if not note.is_file() or not all(file.is_file() for file in files):
        predictor = make()
        for file, scan in progress(list(zip(files, scans, strict=True)), name, "scan"):
            if not file.is_file():
                write_image(file, np.uint8(255) * predictor(scan.image))
        write_json(note, about_predictor(predictor) | {"provenance": provenance(predictor.model.device)})
    return [read_mask(file, "0/255") for file in files], read_json(note)


def scores(mask: np.ndarray, scan: Scan) -> dict[str, object]:
    """A mask's scores, how far its root length is off (over all scans the sum of |found - true| by that of true), and
    `perfect_selection`."""
    found, true = (root_length_mm(each, scan.mm_per_px) for each in (mask, scan.mask))
    row = score_mask(mask, scan.mask) | {"length_error": (abs(found - true), true)}
    return row | {"perfect_selection": perfect_selection(mask, scan)}


def perfect_selection(mask: np.ndarray, scan: Scan) -> tuple[float, int]:
    """The most that one click could give with this mask: its IoU with the clicked root, were it known of every found
    pixel to which true root it is nearest. Summed over patches of 512 px with roots, and their number; within a patch
    the mean over roots by their chance to be clicked (EDT)."""
    total = number = 0
    for patch, found in zip(tile(scan, 512), tile(replace(scan, mask=mask), 512), strict=True):
        roots, many = label_roots(patch.mask)
        if many:
            rows, columns = distance_transform_edt(roots == 0, return_distances=False, return_indices=True)
            own = roots[rows, columns]
            size, found_size, both = (
                np.bincount(numbers[inside], minlength=many + 1)[1:]
                for numbers, inside in ((roots, roots > 0), (own, found.mask), (roots, (own == roots) & found.mask))
            )
            chance = np.bincount(roots.ravel(), point_probability(roots > 0).ravel())[1:]
            total, number = total + float(chance @ (both / (size + found_size - both))), number + 1
    return total, number


def main() -> None:
    """Train, segment, score, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--kept", action="store_true", help="only rows whose masks are there, such as another machine's"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help='only rows whose name holds this, as "10 scans"')
    options = parser.parse_args()
    parts = load_parts("segroot", "valid")
    scans = parts["test"]
    weights = tube_weights([scan.tube for scan in scans], np.random.default_rng(0), 2000)
    before = read_json(FILE) if FILE.is_file() else {}
    results = {part: before.get(part, {}) for part in ("rows", "models", "differences")}
    terms = {}
    for word in options.rows:
        for name, make in ROWS[word](parts, options.seeds):
            if options.only not in name or (options.kept and not (FOLDER / "masks" / name / "about.json").is_file()):
                continue
            masks, made_by = masks_of(name, make, scans)
            terms[name] = collect([scores(mask, scan) for mask, scan in zip(masks, scans, strict=True)])
            results["rows"][name], results["models"][name] = estimates(terms[name], weights), made_by
            own_seed = name.split(", seed ")[-1]
            references = "stage1", "stage2", "profile quick, 5 scans", "stage2 on scans as they are"
            seeded = {"base", *(f"{reference}, seed {own_seed}" for reference in references)}
            for reference in terms.keys() & seeded - {name}:
                results["differences"][f"{name} - {reference}"] = {
                    key: list(difference(part, terms[reference][key], weights)) for key, part in terms[name].items()
                }
            about = describe("segroot", "valid", parts) | {"definitions": DEFINITIONS, "provenance": provenance()}
            write_json(FILE, about | results | {"seeds": seed_ranges(results["rows"])})
            row = results["rows"][name]
            print(name, {key: round(row[key][0], 3) for key in ("pooled_dice", "root_iou", "cl_dice")}, flush=True)


def seed_ranges(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, list[float]]]:
    """Of every row that was trained with several seeds: each score's mean, least and largest."""
    groups: dict[str, list[Mapping]] = {}
    for name, row in rows.items():
        if ", seed " in name:
            groups.setdefault(name.split(", seed ")[0], []).append(row)

    def ends(values: Sequence[float | None]) -> list[float]:  # JSON has no NaN: what no patch could give reads as None
        return [float(f(np.array(values, float))) for f in (np.mean, np.min, np.max)]

    return {
        name: {key: ends([row[key][0] for row in own]) for key in own[0] if all(key in row for row in own)}
        for name, own in groups.items()
    }


if __name__ == "__main__":
    main()
