"""What the full profile needs, and on what it was run: `.venv/bin/python benchmarks/hardware.py`.

Measured on a CPU, on one drawn view, random weights: the bytes that a step keeps for its backward pass (float32) at
several sizes, the bytes of a view's features, and floating-point operations, which are the same on every machine. From
these follow a T4's memory and hours, by arithmetic: it was not run there. Writes data/results/hardware.json; the
CPU's row is of data/results/training-speed.json.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rootsam_lib import CHECKOUT
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import tile
from rootsam_lib.model import RootSAM
from rootsam_lib.results import provenance, read_json, rows_table, write_json
from rootsam_lib.training.config import PRESETS, stage1
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.step import Plan, batch_loss

RESULTS = CHECKOUT / "data" / "results"
SCALE, PLANS = 2.0, {"no correction": Plan((10, 3)), "three corrections": Plan((10, 3), 3, "one")}
# The full profile on SegRoot: patches of 512 and 1024 px that its 31 training and 8 validation scans give, epochs,
# and what a T4 is assumed to reach of its 65e12 half-precision operations a second.
PATCHES, VAL_PATCHES, EPOCHS, PEAK, REACHED = (656, 279), (200, 72), (40, 20), 65e12, (0.1, 0.3)


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, each piece of memory once, parameters not."""

    def __init__(self, model: RootSAM):
        self.known, self.bytes = {p.untyped_storage().data_ptr() for p in model.parameters()}, 0

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def one_view(model: RootSAM, side: int) -> list[dict[str, object]]:
    """Bytes kept, and operations, of one view whose encoder input is of `side` px, by plan."""
    size, rows = int(side / SCALE), []
    scan = next(s for s in synthetic_scans("train", 9, height=512, width=512) if s.mask[:size, :size].sum() > 50)
    config = stage1("small", patch_size=size, input_scale=SCALE)
    bank = FeatureBank(model, tile(scan, size)[:1], input_scale=SCALE, dtype=torch.bfloat16)
    batch = bank.batch([0], [0], model.device)
    for name, plan in PLANS.items():
        kept = Kept(model)
        with FlopCounterMode(display=False) as operations:
            with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
                loss, _ = batch_loss(model, batch, config, 0, [np.random.default_rng(0)], plan)
            loss.backward()
        model.zero_grad()
        row = {"encoder_px": side, "step": name, "kept_mb": kept.bytes / 1e6, "view_mb": bank.view_bytes / 1e6}
        rows.append(row | {"step_gflop": operations.get_total_flops() / 1e9})
    return rows


def encoder_gflop(name: str, side: int) -> float:
    """Operations to encode one image, counted without computing them."""
    trunk = build_sam(name, weights=None).sam.image_encoder.trunk.to("meta")
    with FlopCounterMode(display=False) as operations, torch.no_grad():
        trunk(torch.zeros(1, 3, side, side, device="meta"))
    return operations.get_total_flops() / 1e9


def t4(model: RootSAM, rows: list[dict[str, object]], encode: dict[int, float]) -> dict[str, object]:
    """Memory and hours of the full profile on a T4, from one view's."""
    preset = PRESETS["t4"]
    at = {row["step"]: row for row in rows if row["encoder_px"] == 1024}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    weights = 4e-9 * (
        every + 4 * trained
    )  # gradients, Adam's two moments and the average are of those that are trained
    memory, hours, bank = [], np.zeros(2), []
    for stage, (patches, val, epochs) in enumerate(zip(PATCHES, VAL_PATCHES, EPOCHS, strict=True)):
        larger = 4**stage  # Stage 2's patches have four times the pixels; kept bytes and a step's operations follow
        part = preset.batch_size / (stage + 1) / preset.micro_batches
        memory.append(weights + part * larger * at["three corrections"]["kept_mb"] / 1e3)
        bank.append(patches * larger * at["no correction"]["view_mb"] / 1e3)
        step = 0.8 * at["no correction"]["step_gflop"] + 0.2 * at["three corrections"]["step_gflop"]
        views = 2 * patches * (1 + 0.1 * epochs)  # two views of each, a tenth anew in each epoch
        gflop = epochs * patches * larger * step + (views + val) * encode[1024 * 2**stage]
        gflop += epochs * val * larger * at["no correction"]["step_gflop"] / 3  # forward only
        hours += gflop * 1e9 / (PEAK * np.array(REACHED[::-1])) / 3600
    return {
        "hardware": preset.hardware,
        "state": "not run: arithmetic",
        "model": preset.model,
        "gpu_memory_gb": [round(gb, 1) for gb in memory],
        "features_gb_a_view_set": [round(gb, 1) for gb in bank],
        "hours": [round(float(h), 2) for h in hours],
    }


def main() -> None:
    """Measure, check that four times the pixels keep four times the bytes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "hardware.json")
    parser.add_argument("--model", default="small")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    options = parser.parse_args()
    os.environ.setdefault("ROOTSAM_PROGRESS", "0")
    model = build_sam(options.model, weights=None).train()
    rows = [row for side in options.sides for row in one_view(model, side)]
    first = {row["step"]: row for row in rows if row["encoder_px"] == options.sides[0]}
    for row in rows:
        row["kept_by_arithmetic_mb"] = first[row["step"]]["kept_mb"] * (row["encoder_px"] / options.sides[0]) ** 2
    result = {"title": "What the full profile needs", "meaning": __doc__, "model": options.model, "one_view": rows}
    speed = next(
        r for r in read_json(RESULTS / "training-speed.json")["rows"] if (r["model"], r["size"]) == ("nano", 512)
    )
    cpu = {"hardware": PRESETS["cpu"].hardware, "state": "run", "model": "nano", "seconds_a_step": round(speed["b"], 3)}
    cpu |= {"batch": speed["batch"], "peak_mb": round(speed["peak_mb"]["b"])}
    result["hardware"] = [cpu]
    if 1024 in options.sides:
        result["encoder_gflop"] = encode = {side: encoder_gflop(options.model, side) for side in (1024, 2048)}
        result["hardware"].append(t4(model, rows, encode))
    result["hardware"].append({"hardware": "H100, 80 GB", "state": "not run"})
    write_json(options.out, result | {"provenance": provenance()})
    print(rows_table(rows))
    print(*result["hardware"], sep="\n")


if __name__ == "__main__":
    main()
