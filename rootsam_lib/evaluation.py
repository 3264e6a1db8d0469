"""Protocols: how a model is asked, and what its answers are worth.

The protocol of the poster, `fixed prompts`: on 512 x 512 px patches, every model gets the same seeded points, drawn
once from the true mask, with no person in the loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from rootsam_lib.features import FeatureBank
from rootsam_lib.inference import segment
from rootsam_lib.metrics import DEFINITIONS, Counts, cl_dice, count, iou, summarise
from rootsam_lib.progress import progress
from rootsam_lib.prompts import Prompts, click_prompt, fixed_prompts, next_click, stack_prompts
from rootsam_lib.results import provenance
from rootsam_lib.sam import Features, RootSAM, resize_logits, weights_hash, zoomed
from rootsam_lib.scans import Patch, Scan, check_masks


@dataclass(frozen=True)
class FixedPrompts:
    """The fixed-prompts protocol: n_root and n_soil points per patch, from a seed."""

    n_root: int = 10
    n_soil: int = 5
    seed: int = 0


@torch.no_grad()
def predict(model: RootSAM, features: Features, prompts: Sequence[Prompts] | None = None) -> np.ndarray:
    """Masks bool (B, H, W) in pixels of the original images, for one prompt set per image or none at all."""
    points, labels = stack_prompts(prompts, model.device) if prompts is not None else (None, None)
    logits = model.decode(features, points, labels).logits
    return (resize_logits(logits, features.image_size)[:, 0] > 0).cpu().numpy()


def score(model: RootSAM, bank: FeatureBank, protocol: FixedPrompts | None = FixedPrompts()) -> list[Counts]:
    """Ask the model for every patch of the bank (view 0) with the protocol's points, or without any prompt (None).

    Returns one `Counts` a patch, over the pixels that show the scan.
    """
    model.eval()
    counts = []
    for number in range(len(bank)):
        batch = bank.batch([number], [0], model.device)
        height, width = batch.sizes[0]  # without the mirrored padding of small scans
        truth = batch.masks[0, :height, :width]
        prompts = None
        if protocol is not None:
            prompts = [fixed_prompts(truth, batch.names[0], protocol.n_root, protocol.n_soil, protocol.seed)]
        counts.append(count(predict(model, batch.features, prompts)[0, :height, :width], truth))
    return counts


def prompt_use(
    model: RootSAM,
    patches: Sequence[Patch],
    protocol: FixedPrompts = FixedPrompts(),
    zoom: float = 1.0,
) -> dict[str, float]:
    """A guard: mean root IoU with the protocol's points, with moved points (mirrored at the diagonal) and with none.

    A model that uses its prompts does worse with wrong ones; one that ignores them does not. Patches without roots are
    left out. Raises ValueError when none has any.
    """
    model.eval()
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so points on roots cannot be moved: take more patches.")
    scores = []
    for patch in rooted:
        given = fixed_prompts(patch.mask, patch.name, protocol.n_root, protocol.n_soil, protocol.seed)
        moved = given._replace(points=given.points[:, ::-1].copy())
        features = model.encode(patch.image[None], zoomed(len(patch.image), zoom))
        masks = [predict(model, features, prompts)[0] for prompts in ([given], [moved], None)]
        scores.append([iou(count(mask, patch.mask)) for mask in masks])
    return dict(zip(("true points", "moved points", "no points"), np.mean(scores, axis=0).tolist(), strict=True))


@torch.no_grad()
def correct(model: RootSAM, features: Features, truth: np.ndarray, clicks: int = 20) -> list[np.ndarray]:
    """The mask of one image, bool (H, W), with 0, 1, ... `clicks` correction clicks, from the automatic mask on.

    Each click is `next_click` on the mask so far; the last logits are fed back with all clicks stamped into them, as in
    training. Where nothing is wrong any more the mask stays.
    """
    embedding, masks = model.embed(features), []
    given = np.zeros((0, 3), np.float32)
    points = labels = fed = None
    while len(masks) <= clicks:
        logits = model.decode(embedding, points, labels, fed).logits
        masks.append((resize_logits(logits, truth.shape)[0, 0] > 0).cpu().numpy())
        click = next_click(truth, masks[-1])
        if click is None:
            return masks + masks[-1:] * (clicks + 1 - len(masks))
        given = np.concatenate([given, np.array([click], np.float32)])
        points = torch.from_numpy(given[None, :, :2]).to(model.device)
        labels = torch.from_numpy(given[None, :, 2]).long().to(model.device)
        fed = click_prompt(logits, points, labels, truth.shape[-1])
    return masks


def score_corrections(
    model: RootSAM,
    patches: Sequence[Patch],
    clicks: Sequence[int] = (0, 1, 3, 5, 10, 20),
    zoom: float = 1.0,
) -> dict[int, dict[str, float]]:
    """Mean root IoU and centre-line Dice over the patches with roots, after so many correction clicks.

    Clicks are simulated from the truth. Raises ValueError when no patch has a root.
    """
    model.eval()
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so there is nothing to correct: take more patches.")
    rows = []
    for patch in progress(rooted, "correction clicks", "patch", leave=False):
        masks = correct(model, model.encode(patch.image[None], zoomed(len(patch.image), zoom)), patch.mask, max(clicks))
        rows.append([(iou(count(masks[k], patch.mask)), cl_dice(masks[k], patch.mask)) for k in clicks])
    means = np.mean(rows, axis=0).tolist()
    return {k: {"root_iou": mean[0], "cl_dice": mean[1]} for k, mean in zip(clicks, means, strict=True)}


def score_scans(model: RootSAM, scans: Sequence[Scan], tile_size: int = 512, zoom: float = 1.0) -> list[Counts]:
    """Segment whole scans without any prompt, in tiles that overlap by a quarter; one `Counts` a scan."""
    counts = []
    for scan in progress(scans, "whole scans", "scan", leave=False):
        found = segment(model, scan.image, tile_size, tile_size // 4, zoom=zoom)
        counts.append(count(found.mask, scan.mask))
    return counts


def evaluate(
    models: Mapping[str, RootSAM],
    patches: Sequence[Patch],
    protocol: FixedPrompts = FixedPrompts(),
    zoom: float = 1.0,
    scans: Sequence[Scan] = (),
) -> dict[str, object]:
    """The fixed-prompts protocol for several models on the same patches with the same points.

    models: by the name of their row. Returns a results dictionary (see `results`): protocol, definitions, one row of
    metrics a model, the pixel counts of every patch, and where it was made. Beside it, with no prompt at all:
    `automatic_rows`, on the same patches, and, where scans are given, `whole_scan_rows`, on each scan as a whole.
    """
    check_masks(patches)
    banks: dict[str, FeatureBank] = {}
    rows, automatic, whole, images, hashes = {}, {}, {}, {}, {}
    for name, model in models.items():
        # Models that share their frozen trunk share its features too.
        trunk = weights_hash(model.sam.image_encoder.trunk)
        if trunk not in banks:
            banks[trunk] = FeatureBank(model, patches, zoom=zoom, note="encode test patches")
        counts = score(model, banks[trunk], protocol)
        rows[name] = summarise(counts)
        automatic[name] = summarise(score(model, banks[trunk], None))
        if scans:
            whole[name] = summarise(score_scans(model, scans, patches[0].mask.shape[0], zoom))
        images[name] = [tuple(c) for c in counts]
        hashes[name] = {"model": model.label, "weights": weights_hash(model)}
    return {
        "protocol": {
            "name": "fixed prompts",
            "patch": patches[0].mask.shape[0],
            "zoom": zoom,
            **asdict(protocol),
        },
        "definitions": DEFINITIONS,
        "models": hashes,
        "rows": rows,
        "automatic_rows": automatic,
        **({"whole_scan_rows": whole} if scans else {}),
        "patches": [{"name": p.name, "tube": p.tube} for p in patches],
        "counts": {"order": list(Counts._fields), **images},
        "provenance": provenance(next(iter(models.values())).device),
    }
