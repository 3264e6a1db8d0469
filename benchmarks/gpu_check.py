"""Does it run on this GPU, and how fast: `.venv/bin/python benchmarks/gpu_check.py --out gpu.json`, under 8 minutes.

One JSON: encoder images a second; a training step with features served live, from RAM, from pinned RAM and from the
GPU, with the share of the time in which the device was busy; 200 steps in fp16, bf16 and fp32, with at most a T4's
memory; whole scans by tile batch; and a training in fp16 that is killed and goes on. Weights are random, scans are
drawn. A part that fails, or for which no time is left, says so, and the others go on. --tiny: the same with settings of
seconds, also without a GPU. `python benchmarks/gpu_check.py --counts` prints one step's dispatches and waits, which do
not depend on the machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from rootsam_lib.checkpoints import build_sam, save_checkpoint
from rootsam_lib.data.augment import build_augmentation
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import Patch, tile
from rootsam_lib.predictor import Predictor
from rootsam_lib.results import provenance, write_json
from rootsam_lib.training import loop, step
from rootsam_lib.training.config import StageConfig, stage1
from rootsam_lib.training.devices import build_accelerator
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.step import Plan, train_step

T4_BYTES = 15e9  # what a T4 leaves to a process
FULL = {"models": ("small", "large"), "side": 1024, "patch": 512, "scale": 2.0, "batches": (1, 4, 16)}
FULL |= {"steps": 10, "long": 200, "scan": (2273, 2550), "scans": 4, "tile_batches": (1, 4, 16), "limit": 450}
TINY = {"models": ("nano",), "side": 64, "patch": 64, "scale": 1.0, "batches": (1, 2)}
TINY |= {"steps": 2, "long": 3, "scan": (96, 128), "scans": 2, "tile_batches": (1, 3), "limit": 450}
READS = {"cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "unique"}


class HostReads(TorchFunctionMode):
    """Counts what would make the host wait for a device, also where model and features are on the CPU.

    A tensor is the device's if it is a parameter, was made on or moved to a `torch.device`, or computed from such a
    one; what is read of it on the host is counted by the function's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        flat = [x for a in (*arguments, *named.values()) for x in (a if isinstance(a, (list, tuple)) else (a,))]
        owned = any(isinstance(x, (torch.device, torch.nn.Parameter)) or getattr(x, "of_device", False) for x in flat)
        name = getattr(function, "__name__", "")
        result = function(*arguments, **named)
        if owned and name in {*READS, "to"} and result is arguments[0]:  # there already: a copy, for each side its own
            result = result.clone()
        if owned and name in READS:
            self.counts[name] += 1
        elif owned:
            for x in result if isinstance(result, (list, tuple)) else (result,):
                if isinstance(x, torch.Tensor):
                    x.of_device = True
        return result


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Wall-clock seconds of a call, the mean of several after one that is not counted."""
    call()
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - started) / repeats


def patches_of(size: int, number: int = 8) -> list[Patch]:
    """Patches with roots from drawn scans."""
    scans = synthetic_scans("train", 8, seed=0, height=max(512, size), width=max(512, size))
    return sorted((p for s in scans for p in tile(s, size)), key=lambda p: -p.mask.sum())[:number]


class Training:
    """A model with random weights, its optimizer, and a step on a bank in one place."""

    def __init__(self, model: str, config: StageConfig, patches: list[Patch], precision: str = "auto"):
        self.accelerator = build_accelerator(precision)
        self.config, self.patches = config, patches
        self.model = build_sam(model, weights=None).to(self.accelerator.device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(trained, config.lr))
        self.number = 0

    def bank(self, place: str) -> FeatureBank:
        pipeline = build_augmentation(self.config.patch_size)
        settings = {"input_scale": self.config.input_scale, "dtype": torch.bfloat16, "most_gb": 20, "place": place}
        bank = FeatureBank(self.model, self.patches, pipeline, 1, **settings)
        bank.fill(0)
        return bank

    def steps(self, bank: FeatureBank, number: int) -> Iterator[float]:
        """The next steps' losses; steps are prepared as in the training loop."""
        chosen = np.arange(len(self.patches))[: self.config.batch_size]
        first, self.number = self.number, self.number + number
        chosen = [(chosen, np.zeros(len(chosen), int))] * self.number
        for at, ready in loop.prepared_steps(self.accelerator, bank, self.config, 0, chosen, first):
            own = (self.accelerator, bank, self.config, 0, at, chosen[at], ready)
            yield train_step(self.model, self.optimizer, *own)

    def step(self, bank: FeatureBank) -> float:
        return next(self.steps(bank, 1))


def config_of(size: dict, **changes: object) -> StageConfig:
    return stage1("nano", patch_size=size["patch"], input_scale=size["scale"], batch_size=8, lr=1e-4, **changes)


def encoder(size: dict) -> list[dict[str, object]]:
    """Images a second."""
    rows = []
    for name in size["models"]:
        model = build_sam(name, weights=None).eval()
        for batch in size["batches"]:
            images = np.random.default_rng(0).integers(0, 255, (batch, size["side"], size["side"], 3), dtype=np.uint8)
            taken = seconds(lambda model=model, images=images: model.encode(images), size["steps"])
            rows.append({"model": name, "side": size["side"], "batch": batch, "images_per_second": batch / taken})
    return rows


def served(size: dict) -> list[dict[str, object]]:
    """Seconds a step by where features are, and the share in which the GPU computed; "device only" is the limit."""
    training, rows = Training(size["models"][0], config_of(size, correction_share=0.0), patches_of(size["patch"])), []
    for place in ("live", "memory", "pinned", "gpu"):
        bank = training.bank(place)
        some = lambda bank=bank: list(training.steps(bank, size["steps"]))  # noqa: E731
        row = {"place": place, "seconds": seconds(some, 3) / size["steps"]}
        if torch.cuda.is_available():
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                started = time.perf_counter()
                some()
                wait()
                taken = time.perf_counter() - started
            row["busy_share"] = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / taken
        rows.append(row)
    return rows


def precisions(size: dict) -> list[dict[str, object]]:
    """Losses and peak memory of many steps in each precision, with at most a T4's memory."""
    rows, patches = [], patches_of(size["patch"])
    cuda = torch.cuda.is_available()
    if cuda:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / whole))
    try:
        for precision in ("fp16", "bf16", "no") if cuda else ("bf16", "no"):  # a CPU has no scaler for fp16
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            training = Training(size["models"][0], config_of(size), patches, precision)
            bank = training.bank("memory")
            losses, started = [], time.perf_counter()
            for loss in training.steps(bank, size["long"]):
                losses.append(loss)
                if time.perf_counter() - started > 60:
                    break
            taken = (time.perf_counter() - started) / len(losses)
            row = {"precision": precision, "steps": len(losses), "seconds_a_step": taken}
            row |= {"first_loss": float(np.mean(losses[:10])), "last_loss": float(np.mean(losses[-10:]))}
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
            rows.append(row | {"finite": bool(np.isfinite(losses).all())})
            del training, bank
    finally:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        build_accelerator("no")
    return rows


def whole_scans(size: dict) -> list[dict[str, object]]:
    """Seconds a scan by how many tiles are looked at together, and how many pixels of its mask differ from one's."""
    model, rows, first = build_sam("nano").eval(), [], None
    height, width = size["scan"]
    scans = [s.image for s in synthetic_scans("train", size["scans"], seed=1, height=height, width=width)]
    side = min(512, 32 * (height // 64))
    for batch in size["tile_batches"]:
        predictor = Predictor(model, 1.5, side, keep=False, batch=batch)
        predictor(scans[0])  # a whole one: for every new shape of a batch a GPU chooses its kernels first
        started = time.perf_counter()
        masks = [predictor(scan) for scan in scans]
        taken = (time.perf_counter() - started) / len(scans)
        first = first or masks
        differ = sum(int((a != b).sum()) for a, b in zip(first, masks, strict=True))
        rows.append({"batch": batch, "seconds_a_scan": taken, "pixels_that_differ": differ})
    return rows


def train_here(folder: Path, kill_at: int | None) -> None:
    """Train a small stage in this process, which ends itself at a step."""
    calls, really = [], loop.train_step

    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*arguments, **named)

    loop.train_step = counted
    drawn = [s for s in synthetic_scans("train", 24, seed=3, height=128, width=128) if s.mask.mean() > 0.02][:3]
    scans = [replace(scan, name=f"s{i}", tube=f"T{i:03d}") for i, scan in enumerate(drawn)]
    precision = "fp16" if torch.cuda.is_available() else "no"
    config = StageConfig(1, "nano", 64, 1e-3, epochs=2, batch_size=2, refresh=0.5, precision=precision)
    loop.train_stage(config, scans[:2], scans[2:], folder, folder.parent / "base.safetensors", save_seconds=0)


def killed(size: dict) -> dict[str, object]:
    """A training that is killed and goes on, against one that is not: largest difference of a weight and of a loss."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_checkpoint(build_sam("nano", weights=None), folder / "base.safetensors")
        codes = []
        for name, kill_at in (("whole", 0), ("killed", 6), ("killed", 0)):
            call = [sys.executable, __file__, "--train", str(folder / name), "--kill-at", str(kill_at)]
            codes.append(subprocess.run(call, capture_output=True, timeout=240).returncode)
        states = [
            torch.load(next((folder / name).glob("stage1-*/last.pt")), map_location="cpu", weights_only=True)
            for name in ("whole", "killed")
        ]
    models, losses = zip(*((s["model"], [row["loss"] for row in s["history"]]) for s in states), strict=True)
    weights = max(float((models[0][name] - models[1][name]).abs().max()) for name in models[0])
    return {"exit_codes": codes, "weights_differ_by": weights, "losses": losses}


def counts(size: dict) -> list[dict[str, object]]:
    """Dispatches (the operators of ATen that are not part of another one) and waits of one step, on the CPU."""
    rows, plans = [], {"no correction": Plan((5, 2)), "three corrections": Plan((5, 2), 3, "one")}
    config = config_of(TINY)
    drawn = step.draw_plan
    try:
        for name, plan in plans.items():
            step.draw_plan = lambda *_, plan=plan: plan
            training = Training("nano", replace(config, lr=1e-12), patches_of(64, 4), "no")
            training.config = replace(training.config, batch_size=4)
            bank = training.bank("memory")
            training.step(bank)
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                training.step(bank)
            mine = [e for e in seen.events() if e.name.startswith("aten::")]
            outer = [e for e in mine if e.cpu_parent is None or not e.cpu_parent.name.startswith("aten::")]
            with HostReads() as reads:
                training.step(bank)
            optimizer = sum(e.cpu_parent is not None and e.cpu_parent.name.startswith("Optimizer.") for e in outer)
            row = {"step": name, "dispatches": len(outer), "of_them_in_the_optimizer": optimizer}
            rows.append(row | {"host_reads": dict(reads.counts)})
    finally:
        step.draw_plan = drawn
    return rows


PARTS = {"encoder": encoder, "step": served, "precisions": precisions, "whole scans": whole_scans, "killed": killed}


def main(arguments: list[str] | None = None) -> None:
    """Write the JSON as it grows, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="settings of seconds, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write (default: only printed)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--counts", action="store_true", help="only one step's dispatches and waits, on the CPU")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("ROOTSAM_PROGRESS", "0")
    if options.train:
        train_here(options.train, options.kill_at)
        return
    if options.counts:
        rows = counts(TINY)
        print(json.dumps(rows, indent=1))
        if options.out:
            about = {"title": "Dispatches and waits of a training step", "meaning": __doc__}
            write_json(options.out, about | {"rows": rows, "provenance": provenance()})
        return
    size, started = TINY if options.tiny else FULL, time.perf_counter()
    result = {"title": "One GPU" if torch.cuda.is_available() else "No GPU: to see that it runs", "meaning": __doc__}
    result |= {"provenance": provenance(device_name()), "settings": size}
    for name in options.parts:
        part, begun = PARTS[name], time.perf_counter()
        if begun - started > size["limit"] - 60:
            result[name] = "not run: no time was left"
        else:
            try:
                result[name] = part(size)
            except Exception as error:  # the other parts are worth having
                result[name] = f"failed: {type(error).__name__}: {error}"
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        result.setdefault("seconds", {})[name] = time.perf_counter() - begun
        if options.out:
            write_json(options.out, result)
    print(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main()
