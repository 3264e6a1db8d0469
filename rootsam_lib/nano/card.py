"""What `nano` can do, measured on held-out scenes and on a photograph, and the card beside its weights that says so."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import skimage.data
import torch
from scipy import ndimage
from scipy.stats import spearmanr
from skimage import filters, segmentation

from rootsam_lib.checkpoints import NANO, save_checkpoint
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import Prediction, RootSAM, resize_logits
from rootsam_lib.nano.scenes import numbered_scene, object_sizes
from rootsam_lib.prompts import next_click
from rootsam_lib.results import commit, read_json, table, write_json

HELD_OUT_SEED = 2**31  # of the scenes that scores are measured on; training draws its scenes from other seeds
PER_SCENE, CLICKS = 3, 10
SCORES = {  # by name: what it means, and what we aim at
    "iou_1": ("mean IoU after one foreground click, the mask that the model rates highest of its three", 0.70),
    "iou_1_best": ("the same, best of the three masks", 0.75),
    "iou_5": ("mean IoU after 5 clicks, each at the centre of the widest error", 0.82),
    "iou_10": ("mean IoU after 10 clicks", 0.85),
    "iou_neighbour": ("mean IoU of the one-click mask with the nearest other object, which was not clicked", 0.05),
    "spearman": ("rank correlation of predicted and true IoU, one click", 0.6),
}


def _ious(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The IoU of each of the masks, bool (N, H, W), with its own truth, float (N,)."""
    return iou(count(masks, truths))


def _best(answer: Prediction, shape: tuple[int, int]) -> tuple[np.ndarray, torch.Tensor]:
    """Of each prompt set's masks the one that the model rates highest: bool (P, H, W), and its logits (P, 1, h, w)."""
    top = answer.logits[torch.arange(len(answer.iou)), answer.iou.argmax(1)][:, None]
    return (resize_logits(top, shape)[:, 0] > 0).cpu().numpy(), top


@torch.no_grad()
def score(model: RootSAM, scenes: int = 500, size: int = 512) -> dict[str, float]:
    """Click on objects of held-out scenes and measure; the keys are those of `SCORES`, and "objects", their number.

    Objects that show at least 0.3 % of the image are clicked at their centre, up to three of each scene; then
    each click goes to the centre of the widest error, and the last logits are fed back. IoU is at full resolution.
    """
    model.eval()
    values: dict[str, list[float]] = {key: [] for key in (*SCORES, "rated")}
    for index in range(scenes):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        scene = numbered_scene(HELD_OUT_SEED, 0, index, size)
        large = np.flatnonzero(object_sizes(scene)[1:] >= 0.003 * size**2) + 1
        if not len(large):
            continue
        chosen = rng.permutation(large)[:PER_SCENE]
        truth = scene.labels == chosen[:, None, None]
        embedding = model.embed(model.encode(scene.image[None]))
        clicks = torch.zeros(len(truth), 0, 3)
        fed, masks = None, np.zeros_like(truth)
        for number in range(1, CLICKS + 1):
            new = [next_click(t, m) or (0, 0, -1) for t, m in zip(truth, masks, strict=True)]
            clicks = torch.cat([clicks, torch.tensor(new, dtype=torch.float32)[:, None]], 1)
            answer = model.decode(embedding, clicks[..., :2], clicks[..., 2].long(), fed, multimask=number == 1)
            masks, top = _best(answer, truth.shape[1:])
            fed = top.clamp(-32, 32)
            if f"iou_{number}" in values:
                values[f"iou_{number}"] += _ious(masks, truth).tolist()
            if number == 1:
                three = resize_logits(answer.logits, truth.shape[1:]).cpu().numpy() > 0
                values["iou_1_best"] += iou(count(three, truth[:, None].repeat(3, 1))).max(1).tolist()
                values["rated"] += answer.iou.amax(1).tolist()
                values["iou_neighbour"] += _neighbour_ious(masks, scene.labels, chosen)
    correlation = float(spearmanr(values["rated"], values["iou_1"]).statistic)
    means = {key: round(float(np.mean(values[key])), 4) for key in SCORES if values[key]}
    return {**means, "spearman": round(correlation, 4), "objects": len(values["rated"])}


def _neighbour_ious(masks: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> list[float]:
    """IoU of each mask with the visible object whose centre is nearest to the clicked one's."""
    visible = np.flatnonzero(np.bincount(labels.ravel()) >= 0.0005 * labels.size)
    visible = visible[visible > 0]
    if len(visible) < 2:
        return []
    centres = np.array(ndimage.center_of_mass(np.ones(labels.shape), labels, visible))
    distances = np.linalg.norm(centres - centres[np.searchsorted(visible, chosen)][:, None], axis=2)
    distances[chosen[:, None] == visible] = np.inf
    return _ious(masks, labels == visible[distances.argmin(1)][:, None, None]).tolist()


@torch.no_grad()
def score_coins(model: RootSAM) -> np.ndarray:
    """Click once on each of the N coins of the photograph that scikit-image brings along: their IoU, float (N,).

    The truth is scikit-image's own tutorial answer: a watershed of the edge map from dark and bright markers.
    """
    picture = skimage.data.coins()
    markers = np.where(picture < 30, 1, np.where(picture > 150, 2, 0))
    filled = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(picture), markers) == 2)
    labels, _ = ndimage.label(filled)
    large = np.flatnonzero(np.bincount(labels.ravel()) > 300)[1:]
    truth = labels == large[:, None, None]
    clicks = np.array([next_click(coin, coin & False)[:2] for coin in truth], np.float32)
    features = model.eval().encode(np.repeat(picture[None, ..., None], 3, -1), size=512)
    points, labels = torch.from_numpy(clicks)[:, None], torch.ones(len(clicks), 1, dtype=torch.long)
    masks, _ = _best(model.decode(features, points, labels, multimask=True), picture.shape)
    return _ious(masks, truth)


def score_table(scores: dict[str, float]) -> str:
    """Scores as `score` returns them, against their targets, as a Markdown table."""
    rows = []
    for key, (meaning, target) in SCORES.items():
        below = key == "iou_neighbour"
        met = scores[key] < target if below else scores[key] >= target
        wanted = f"{'below' if below else 'at least'} {target:.2f}"
        rows.append([meaning, f"{scores[key]:.3f}", wanted, "yes" if met else "no"])
    return table(["", "measured", "target", "met"], rows)


def export(model: RootSAM, about: dict, to: Path, scenes: int = 500) -> dict:
    """Write nano.safetensors (fp16) into `to`, and beside it its card nano.json, which is returned.

    about: seed, steps and hours of the run. What does not depend on the run (licence, credit, …) is taken from the
    packaged card. scenes: how many held-out scenes the scores on the card come from.
    """
    scores, ious = score(model, scenes), score_coins(model)  # before anything is written: it takes minutes
    weights = to / "nano.safetensors"
    save_checkpoint(copy.deepcopy(model).half(), weights, {"input_scale": 1.0, "patch_size": 512})
    kept = ("name", "label", "architecture", "data", "recipe", "licence", "credit")
    packaged = read_json(NANO / "nano.json")
    card = {key: packaged[key] for key in kept} | {
        "commit": commit(),
        "note": "",
        **about,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "scores": scores,
        "score_meanings": {key: meaning for key, (meaning, _) in SCORES.items()},
        "coins": {"coins": len(ious), "returned": int((ious >= 0.75).sum()), "iou": round(float(ious.mean()), 4)},
        "targets": {key: target for key, (_, target) in SCORES.items()},
    }
    write_json(to / "nano.json", card)
    return card
