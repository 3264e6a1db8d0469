"""Which image needs a person most? Asked of the model alone, before anybody has clicked."""

import zlib
from collections.abc import Sequence

import numpy as np

from rootsam_lib.data.scans import Scan, check_scans
from rootsam_lib.metrics import count, iou
from rootsam_lib.predictor import Predictor, check_predictor
from rootsam_lib.prompts import sample_points, with_slips
from rootsam_lib.results import progress

SETS, POINTS, JITTER = 4, 5, 3.0  # prompt sets, points of each, and how far these are moved, px (SD)


def triage(predictor: Predictor, scans: Sequence[Scan], seed: int = 0) -> list[dict[str, object]]:
    """Images in the order in which they need a person, asked without any truth, each a row: index, image, need,
    predicted_iou, agreement, root_share and the reason in words.

    predicted_iou: the model's estimate for its mask of all roots, mean over tiles. agreement: mean IoU of that mask
    with the masks of `SETS` prompt sets of `POINTS` points each, drawn from the mask itself and moved by `JITTER` px
    (SD). need: the mean of 1 - predicted_iou and 1 - agreement. Every image is encoded once. Seeded by image name, so
    the order of the list does not matter. Raises ValueError for what are no scans, and no predictor.
    """
    check_predictor(predictor)
    if not hasattr(scans, "names"):
        check_scans(scans)
    rows = []
    for index in progress(range(len(scans)), "triage", "image", leave=False):
        scan = scans[index]
        predictor.set_image(scan.image)
        mask = predictor.correct()
        sure = min(max(predictor.predicted_iou, 0), 1)
        rng = np.random.default_rng([seed, zlib.crc32(scan.name.encode())])
        agreements = []
        for _ in range(SETS if mask.any() else 0):
            moved = with_slips(sample_points(mask, POINTS, 0, rng), JITTER, mask.shape, rng)
            agreements.append(iou(count(predictor.predict(*moved)[0][0], mask)))
        steady = float(np.mean(agreements)) if agreements else 1.0
        if not mask.any():
            reason = "no root found: is there none?"
        elif steady < sure:
            reason = f"its masks agree only {steady:.2f} when its points move"
        else:
            reason = f"it expects an IoU of only {sure:.2f}"
        row = {"index": index, "image": scan.name, "need": 1 - (sure + steady) / 2, "predicted_iou": sure}
        rows.append(row | {"agreement": steady, "root_share": float(mask.mean()), "reason": reason})
    return sorted(rows, key=lambda row: (-row["need"], row["index"]))
