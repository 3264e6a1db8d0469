"""Point prompts: where a person would click, imitated from a mask, and what they mean.

What a prompt means in RootSAM: no point: all roots. Points: the roots that carry a root point, and none that carries a
soil point. "A root" here is one connected piece of the mask, corners included; roots that cross count as one. See
`meant_roots`. (The poster's evaluation draws ten points and scores all roots, whatever the points say; together with a
mask prompt, clicks do not select roots, they correct that mask.)

Points are (x, y) in pixels, x to the right and y down, float32 (N, 2); labels are int64 (N,): 1 root, 0 not wanted
(soil, or a root that the person does not want), and -1 for padding. `RootSAM.decode` removes the padding, because
SAM2.1's prompt encoder would let it change the answer. A mask without roots is legal everywhere.

"The poster": RootSAM: Adapting SAM2.1 for Root Segmentation in Minirhizotron Imagery (Parth, Varela, Walker, Shakoor,
Leakey; CABBI, University of Illinois).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from rootsam_lib import checked, checked_mask

ROOT, SOIL, PADDING = 1, 0, -1
MOST_EXPONENT = 64


class Prompts(NamedTuple):
    """points float32 (N, 2) as (x, y) px, labels int64 (N,)."""

    points: np.ndarray
    labels: np.ndarray


def edt_map(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance transform: for every root pixel the distance in px to the nearest soil pixel, 0 on soil.

    mask: bool (H, W). Returns float32 (H, W). The image border is not a root's boundary: a root that leaves the image
    does not end there. A mask with no soil at all has no boundary: every distance is 1. (Poster, prompting strategy.)
    """
    if checked_mask(mask, one=True).all():
        return np.ones(mask.shape, np.float32)
    distance = cv2.distanceTransform(np.ascontiguousarray(mask, np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances are whole numbers. cv2's last digit depends on its number of threads and on where an array lies
    # in memory, and a training that should repeat bit for bit would not.
    return np.sqrt(np.rint(np.square(distance)))


def point_probability(mask: np.ndarray, exponent: float = 1.0) -> np.ndarray:
    """The chance of every pixel to become a root point: EDT ** exponent, normalised to 1 (all 0 without roots).

    exponent 0 is uniform over root pixels, 1 the poster's rule, larger values keep to the middle of the thickest roots.
    Returns float64 (H, W). Raises ValueError for an exponent below 0 or above 64, where numbers end.
    """
    checked("exponent", exponent, 0, MOST_EXPONENT)
    weight = np.zeros(mask.shape)
    weight[mask] = edt_map(mask)[mask].astype(np.float64) ** exponent
    return weight / max(weight.sum(), np.finfo(float).tiny)


def _draw(flat: np.ndarray, shape: tuple[int, int], count: int, rng: np.random.Generator, weight=None) -> np.ndarray:
    """Up to `count` different pixels (x, y) of those numbered in `flat`, evenly or in proportion to weight."""
    if weight is not None:
        flat, weight = flat[weight > 0], weight[weight > 0]
    count = min(count, flat.size)
    if count == 0:
        return np.zeros((0, 2), np.float32)
    chosen = rng.choice(flat, size=count, replace=False, p=None if weight is None else weight / weight.sum())
    rows, columns = np.unravel_index(chosen, shape)
    return np.stack([columns, rows], axis=1).astype(np.float32)


def sample_points(
    mask: np.ndarray,
    n_root: int,
    n_soil: int,
    rng: np.random.Generator,
    exponent: float = 1.0,
    hard_share: float = 0.5,
    hard_band: tuple[float, float] = (3.0, 15.0),
) -> Prompts:
    """Draw root points in proportion to EDT ** exponent, and soil points.

    hard_share of the soil points lie near a root, between hard_band[0] and hard_band[1] px away, where a mistake is
    likely; the others are uniform over the soil.
    Always returns n_root + n_soil points: what cannot be drawn (no root in the mask, no soil) is padding, label -1.
    Raises ValueError for a count or an exponent below 0, or a share above 1.
    """
    n_root, n_soil = (checked(name, n, 0, whole=True) for name, n in (("n_root", n_root), ("n_soil", n_soil)))
    checked("exponent", exponent, 0, MOST_EXPONENT)
    checked("hard_share", hard_share, 0, 1)
    soil, rooted = ~checked_mask(mask), mask.any()
    n_hard = round(hard_share * n_soil) if rooted and soil.any() else 0
    hard = np.zeros((0, 2), np.float32)
    if n_hard:
        away = edt_map(soil)
        hard = _draw(np.flatnonzero((away >= hard_band[0]) & (away <= hard_band[1])), mask.shape, n_hard, rng)
    inside, weight = np.flatnonzero(mask), None
    if rooted and n_root:
        weight = edt_map(mask).ravel()[inside].astype(np.float64) ** exponent
    on_root = _draw(inside, mask.shape, n_root, rng, weight)
    on_soil = np.concatenate([hard, _draw(np.flatnonzero(soil), mask.shape, n_soil - len(hard), rng)])
    missing = n_root + n_soil - len(on_root) - len(on_soil)
    points = np.concatenate([on_root, on_soil, np.zeros((missing, 2), np.float32)])
    labels = np.repeat([ROOT, SOIL, PADDING], [len(on_root), len(on_soil), missing])
    return Prompts(points, labels)


def fixed_prompts(mask: np.ndarray, name: str, n_root: int = 10, n_soil: int = 5, seed: int = 0) -> Prompts:
    """The evaluation's points: the same for every model and on every machine.

    They depend on the mask, the image's name and the seed only. They are drawn from the truth, so they tell the model
    where roots are: never compare a score made with them to an automatic method's.
    """
    seed = checked("seed", seed, 0, whole=True)
    return sample_points(mask, n_root, n_soil, np.random.default_rng([seed, zlib.crc32(name.encode())]))


@dataclass(frozen=True)
class FixedPrompts:
    """The poster's protocol: every model gets the same seeded points, drawn from the true mask, n_root and n_soil
    of them per patch, with no person in the loop."""

    n_root: int = 10
    n_soil: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_root", 1), ("n_soil", 0), ("seed", 0)):  # soil points alone ask for no root
            object.__setattr__(self, name, checked(name, getattr(self, name), least, whole=True))

    def draw(self, mask: np.ndarray, name: str) -> Prompts:
        """The points of one image: see `fixed_prompts`."""
        return fixed_prompts(mask, name, self.n_root, self.n_soil, self.seed)


POSTER_PROMPTS = FixedPrompts()


def with_slips(prompts: Prompts, slip: float, shape: tuple[int, int], rng: np.random.Generator) -> Prompts:
    """The points as a hand would set them: each misses its aim by a normal error of `slip` px (SD) in x and in y.

    A slipped point keeps its label, also where it leaves the root, and stays inside an image of shape (H, W). Raises
    ValueError for a slip below 0.
    """
    checked("slip", slip, 0)
    moved = np.rint(prompts.points + rng.normal(0, slip, prompts.points.shape))
    moved = np.clip(moved, 0, (shape[1] - 1, shape[0] - 1)).astype(np.float32)
    return prompts._replace(points=np.where(prompts.labels[:, None] == PADDING, prompts.points, moved))


# --- What points mean, and points that mean some of the roots


def meant_roots(roots: np.ndarray, prompts: Prompts) -> np.ndarray:
    """What a prompt means, as a mask bool (H, W): without any point all roots, else the roots that carry a root point,
    and none that carries a soil point.

    roots: the roots' numbers, int (H, W), 0 on soil. `metrics.label_roots` counts what hangs together, corners
    included, as one root: that much a mask says without doubt, and a person sees it as one piece. Branches of its
    skeleton would part roots that cross, but which branch goes on as which beyond a crossing would be a guess.
    Raises ValueError for a point outside of the image, and for a mask in place of numbers.
    """
    if roots.dtype == bool:
        raise ValueError("roots is a mask, but must number its roots: give metrics.label_roots(mask)[0].")
    given = prompts.labels != PADDING
    if not given.any():
        return roots > 0
    x, y = np.floor(prompts.points[given]).astype(int).T
    if x.min() < 0 or y.min() < 0 or x.max() >= roots.shape[1] or y.max() >= roots.shape[0]:
        raise ValueError(
            f"a point lies outside of the image, which is {roots.shape[1]} x {roots.shape[0]} px: move it."
        )
    carrying, labels = roots[y, x], prompts.labels[given]
    if not np.isin(labels, (ROOT, SOIL)).all():
        raise ValueError(f"a point has label {labels.max()}: give 1 for root or 0 for soil.")
    meant = np.setdiff1d(carrying[labels == ROOT], carrying[labels == SOIL])
    return np.isin(roots, meant[meant > 0])


def selection_prompts(
    roots: np.ndarray, count: int, n_soil: int, rng: np.random.Generator, exponent: float = 1.0, slip: float = 2.0
) -> tuple[Prompts, np.ndarray]:
    """`count` points of a person who wants some of the roots, and the mask, bool (H, W), that the points mean.

    roots: the roots' numbers, as for `meant_roots`, at least one. n_soil of the points are soil points: each on a root
    that no root point asks for, where there is one, or on soil, by equal chance. Root points follow EDT ** exponent, in
    half of the sets over all roots, in the others over the first point's root and a random half of the roots, so that
    some are usually left out. Half of
    all points on roots miss their aim by `slip` px (SD); they mean what they were aimed at.
    A mask without any soil gets root points only. Raises ValueError for no root, or no root point.
    """
    if not (roots > 0).any() or not 0 <= n_soil < count:
        raise ValueError(f"{count} points, {n_soil} soil points among them: give a root, and fewer soil points.")
    inside, soil = np.flatnonzero(roots), np.flatnonzero(roots == 0)
    owner, chance = roots.flat[inside], point_probability(roots > 0, exponent).flat[inside]
    n_soil = n_soil if soil.size else 0

    def aim(allowed: np.ndarray, n: int) -> np.ndarray:
        return rng.choice(inside[allowed], n, p=chance[allowed] / chance[allowed].sum())

    wanted = aim(owner > 0, 1)
    numbers = np.unique(owner)
    few = rng.permutation(numbers)[: len(numbers) // 2] if rng.random() < 0.5 else numbers
    wanted = np.append(wanted, aim(np.isin(owner, [*few, roots.flat[wanted[0]]]), count - n_soil - 1))
    others = ~np.isin(owner, roots.flat[wanted])
    n_other = int(rng.binomial(n_soil, 0.5)) if others.any() else 0
    unwanted = [aim(others, n_other)] if n_other else []
    unwanted += [rng.choice(soil, n_soil - n_other)] if n_soil else []
    rows, columns = np.unravel_index(np.concatenate([wanted, *unwanted]), roots.shape)
    labels = np.repeat([ROOT, SOIL], [count - n_soil, n_soil])
    aimed = Prompts(np.stack([columns, rows], axis=1).astype(np.float32), labels)
    slips = (roots[rows, columns] > 0) & (rng.random(count) < 0.5)
    hand = with_slips(aimed, slip, roots.shape, rng)
    return aimed._replace(points=np.where(slips[:, None], hand.points, aimed.points)), meant_roots(roots, aimed)


def next_click(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float, int] | None:
    """The next corrective click (x, y, label): the point deepest inside the largest error.

    Missed root and false root are looked at apart; the pixel with the greatest distance to the edge of its error region
    wins (RITM, Sofiiuk et al. 2022, section 3). The image border counts as an edge here. None when nothing is wrong.
    """
    best: tuple[float, float, float, int] | None = None
    for label, wrong in ((ROOT, truth & ~prediction), (SOIL, prediction & ~truth)):
        depth = edt_map(np.pad(wrong, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[row, column] > (best[0] if best else 0):
            best = (float(depth[row, column]), float(column), float(row), label)
    return best[1:] if best else None


def stack_prompts(prompts: Sequence[Prompts], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of B images as tensors: points float32 (B, N, 2), labels int64 (B, N), short sets padded with -1."""
    longest = max(len(p.labels) for p in prompts)
    points = np.zeros((len(prompts), longest, 2), np.float32)
    labels = np.full((len(prompts), longest), PADDING, np.int64)
    for row, (image_points, image_labels) in enumerate(prompts):
        points[row, : len(image_labels)] = image_points
        labels[row, : len(image_labels)] = image_labels
    return torch.from_numpy(points).to(device), torch.from_numpy(labels).to(device)


# --- Correction clicks: drawn in training, where the model is wrong


def draw_click(rng: np.random.Generator, region: np.ndarray) -> tuple[int, int]:
    """One click (x, y) inside a region, bool (H, W), not empty.

    20 %: its deepest pixel; 50 %: the chance grows with the squared distance to its edge; 30 %: any of its pixels.
    """
    kind = rng.random()
    if kind < 0.7:
        padded = np.pad(region.astype(np.uint8), 1)  # the image's border is an edge as well
        weight = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1].ravel() ** 2
    else:
        weight = region.ravel().astype(np.float32)
    if kind < 0.2:
        place = int(weight.argmax())
    else:
        total = np.cumsum(weight, dtype=np.float64)
        place = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    return place % region.shape[1], place // region.shape[1]


def error_click(rng: np.random.Generator, predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """A click (x, y, label) on one of the wrong pixels' regions, label -1 where nothing is wrong. Masks bool (H, W).

    Uniform clicks on wrong pixels would mostly fall on the one-pixel seams along boundaries: see `draw_click`.
    """
    missed, excess = truth & ~predicted, predicted & ~truth
    wrong = missed.sum() + excess.sum()
    if not wrong:
        return 0, 0, PADDING
    label = int(rng.random() * wrong < missed.sum())
    return *draw_click(rng, missed if label else excess), label


def stamp_clicks(logits: Tensor, points: Tensor, labels: Tensor, radius: float = 2.0, value: float = 30.0) -> Tensor:
    """Mask prompts (P, 1, h, w) with each click as a small disk of +-value; points (P, N, 2) in px of the logits.

    The decoder knows of a click only through attention over places of 16 px; the stamp marks its pixels themselves.
    """
    y, x = torch.meshgrid(*(torch.arange(n, device=logits.device) for n in logits.shape[-2:]), indexing="ij")
    for i in range(points.shape[1]):
        near = (x - points[:, i, 0, None, None]).square() + (y - points[:, i, 1, None, None]).square() <= radius**2
        sign = labels[:, i, None, None]
        logits = torch.where((near & (sign >= 0))[:, None], (2 * sign - 1)[:, None] * value, logits)
    return logits


def click_prompt(logits: Tensor, points: Tensor, labels: Tensor, side: int) -> Tensor:
    """The mask prompt of a correction: the last logits (P, 1, h, w), all clicks since the first mask stamped in.

    points (P, N, 2) in px of an image of `side` px width. No gradient flows back through it.
    """
    return stamp_clicks(logits.detach().float().clamp(-32, 32), points * logits.shape[-1] / side, labels)
