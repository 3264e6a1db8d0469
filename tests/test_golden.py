"""Golden values: what a small piece of the whole chain computes, so that moving code cannot change it unseen.

`python tests/test_golden.py` writes `golden.json` anew; a commit that does so says which number changed, and why.
On the machine that wrote them (its torch and vector instructions) hashes must be equal to the bit; elsewhere
floating-point sums are ordered differently, and only the scores are compared, to 2 %.
"""

import hashlib
import json
import platform
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rootsam_lib.checkpoints import build_sam, weights_hash
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import Scan, tile
from rootsam_lib.evaluation.protocols import evaluate
from rootsam_lib.metrics import label_roots
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import error_click, fixed_prompts, sample_points, selection_prompts
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.loop import train_stage

FILE = Path(__file__).with_name("golden.json")
CONFIG = StageConfig(
    1,
    "nano",
    128,
    1e-3,
    epochs=2,
    batch_size=2,
    views=2,
    refresh=0.5,
    input_scale=1.5,
    detail=True,
    schedule="cosine",
    precision="no",
)


def machine() -> str:
    """What decides the last bits of a sum: two processors of one instruction set can differ in them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text().split("\n\n")[0] if info.is_file() else ""
    cpu = re.findall(r"^(?:model|model name|stepping)\s*: (.+)$", text, re.MULTILINE)
    return ", ".join([f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability(), platform.machine(), *cpu])


def digest(*arrays: np.ndarray) -> str:
    """Sixteen hex digits of arrays' dtypes, shapes and bytes."""
    seen = hashlib.sha256()
    for array in arrays:
        seen.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return seen.hexdigest()[:16]


def scans() -> list[Scan]:
    """Three drawn scans of 256 x 256 px, of three tubes, all with roots."""
    drawn = [s for s in synthetic_scans("train", 24, seed=3, height=256, width=256) if s.mask.mean() > 0.01][:3]
    return [Scan(s.image, s.mask, f"s{i}", f"T{i:03d}", "", s.mm_per_px) for i, s in enumerate(drawn)]


def golden(runs: Path) -> dict[str, dict[str, object]]:
    """{"hashes": equal to the bit on one machine, "scores": close everywhere}."""
    train, held_out = scans()[:2], scans()[2]
    mask = held_out.mask
    rng = np.random.default_rng(0)
    drawn = sample_points(mask, 20, 10, rng), fixed_prompts(mask, held_out.name)
    chosen, meant = selection_prompts(label_roots(mask)[0], 6, 2, np.random.default_rng(1))
    click = np.array([error_click(rng, np.roll(mask, 3, 1), mask) for _ in range(5)])
    stage = train_stage(CONFIG, train, [held_out], runs)
    model = stage.model()
    found = Predictor(model, 1.5, 128, 32, tta=True)(held_out.image)
    prompted = Predictor(model, 1.5, 128, 32, select=True)(held_out.image, fixed_prompts(mask, held_out.name))
    corrector = Predictor(model, 1.5, 128, 16)
    corrector.set_image(held_out.image)
    row, column = np.argwhere(mask)[100]
    corrected = corrector.correct([(int(column), int(row), 1), (10, 200, 0)])
    predictors = {"base": Predictor(build_sam(), 1.5), "stage1": Predictor(model, 1.5)}
    patches = tile(held_out, 128)
    results = evaluate(predictors, patches, scans=[held_out], clicked=patches[:1], draws=50)
    return {
        "hashes": {
            "selection": digest(*chosen, meant),
            "prompts": digest(*(array for prompts in drawn for array in prompts), click),
            "weights": weights_hash(model),
            "mask": digest(found),
            "prompted mask": digest(prompted),
            "corrected mask": digest(corrected),
        },
        "scores": {
            "losses": [row["loss"] for row in stage.history],
            "val": [row["val_score"] for row in stage.history],
            "found": float(found.mean()),
            "table": {
                table: {name: {score: value[0] for score, value in row.items()} for name, row in rows.items()}
                for table, rows in results["tables"].items()
            },
            "intervals": results["tables"]["fixed prompts"]["stage1"]["root_iou"],
        },
    }


def flat(values: object, name: str = "") -> dict[str, float]:
    """Nested numbers under dotted names."""
    if isinstance(values, (dict, list)):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: number for part, value in items for key, number in flat(value, f"{name}.{part}").items()}
    return {name: float("nan") if values is None else values}


def test_golden_values(tmp_path):
    expected = json.loads(FILE.read_text())
    torch.set_num_threads(1)
    found = json.loads(json.dumps(golden(tmp_path)))
    if machine() == expected["machine"]:
        assert found["hashes"] == expected["hashes"]
        assert flat(found["scores"]) == pytest.approx(flat(expected["scores"]), rel=1e-6, nan_ok=True)
    else:
        for drawn in ("prompts", "selection"):
            assert found["hashes"][drawn] == expected["hashes"][drawn]
        assert flat(found["scores"]) == pytest.approx(flat(expected["scores"]), rel=0.02, abs=0.02, nan_ok=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        content = {"machine": machine(), **golden(Path(folder))}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
