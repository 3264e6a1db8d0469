"""Which image needs a person most?

Asked without any truth: by how sure the model says it is, and by whether it says the same when it is pointed to its own
roots a little differently.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from rootsam_lib.data.scans import Scan
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor_corrector import Corrector
from rootsam_lib.prompts import sample_points
from rootsam_lib.results import progress

POINTS, JITTER = 5, 3.0  # points of a prompt set, drawn from the model's own mask, and their spread in px


def triage(
    model: RootSAM,
    scans: Sequence[Scan],
    input_scale: float = 1.0,
    tile_size: int = 1024,
    sets: int = 4,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Images in the order in which they need a person, each a row: index, image, need, predicted_iou, agreement,
    root_share and the reason in words.

    predicted_iou: the model's estimate for its automatic mask, mean over tiles. agreement: mean IoU of that mask with
    the masks of `sets` prompt sets of five points, drawn from the mask itself and moved by 3 px (SD). need: the mean of
    1 - predicted_iou and 1 - agreement. Every image is encoded once. Seeded by image name, so the order of the list
    does not matter.
    """
    rows = []
    for index in progress(range(len(scans)), "triage", "image", leave=False):
        scan = scans[index]
        corrector = Corrector(model, scan.image, input_scale, tile_size)
        rng = np.random.default_rng([seed, zlib.crc32(scan.name.encode())])
        agreement = 1.0
        if corrector.mask.any():
            drawn = np.stack([sample_points(corrector.mask, POINTS, 0, rng).points for _ in range(sets)])
            moved = np.rint(drawn + rng.normal(0, JITTER, drawn.shape)).astype(int)
            agreement = corrector.moved_prompts(np.clip(moved, 0, np.array(corrector.shape[::-1]) - 1))
        doubt = 1 - min(max(corrector.predicted_iou, 0), 1), 1 - agreement
        row = {"index": index, "image": scan.name, "need": sum(doubt) / 2, "predicted_iou": corrector.predicted_iou}
        row |= {"agreement": agreement, "root_share": float(corrector.mask.mean())}
        rows.append(row | {"reason": _reason(row)})
    return sorted(rows, key=lambda row: (-row["need"], row["index"]))


def _reason(row: dict) -> str:
    if not row["root_share"]:
        return "no root found: is there none?"
    unsure, unsteady = 1 - row["predicted_iou"], 1 - row["agreement"]
    if unsteady > unsure:
        return f"its masks agree only {row['agreement']:.2f} when its points move"
    return f"it expects an IoU of only {row['predicted_iou']:.2f}"
