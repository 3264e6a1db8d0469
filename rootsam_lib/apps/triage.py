"""Which image needs a person most? Asked of the model alone, before anybody has clicked."""

from collections.abc import Sequence

import numpy as np

from rootsam_lib.data.scans import Scan, check_scans
from rootsam_lib.metrics import count, iou
from rootsam_lib.predictor import Predictor, check_predictor
from rootsam_lib.results import progress


def triage(predictor: Predictor, scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Images in the order in which they need a person, asked without any truth, each a row: index, image, need,
    predicted_iou, agreement, root_share and the reason in words.

    agreement: IoU of the model's mask with the one that it gives to the mirrored image; need: 1 - agreement.
    predicted_iou, the model's own estimate, mean over tiles, is told and not used: on real scans it did not follow the
    truth. Raises ValueError for what are no scans, and no predictor.
    """
    check_predictor(predictor)
    if not hasattr(scans, "names"):
        check_scans(scans)
    rows = []
    for index in progress(range(len(scans)), "triage", "image", leave=False):
        image = scans[index].image
        mirrored = predictor(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
        predictor.set_image(image)
        mask = predictor.correct()
        agreement = float(iou(count(mask, mirrored)))
        found = "no root found: is there none?" if not mask.any() else f"mirrored, it agrees by only {agreement:.2f}"
        row = {"index": index, "image": scans[index].name, "need": 1 - agreement, "agreement": agreement}
        row |= {"predicted_iou": min(max(predictor.predicted_iou, 0), 1), "root_share": float(mask.mean())}
        rows.append(row | {"reason": found})
    return sorted(rows, key=lambda row: (-row["need"], row["index"]))
