"""What a training step costs: `.venv/bin/python benchmarks/training_speed.py [nano tiny] [--rounds 7]`.

For each model at 512 and 1024 px, measured in turns in one process, median of all rounds:
(a) the usual loop: every batch is augmented and runs through the encoder;
(b) this project's engine with the feature bank warm, in files; (ram) in RAM; (thread) in files, and a thread prepares
the next step meanwhile, as it does for a GPU;
(c) the limit: prompts, decoder forward, loss, backward and optimizer on features and masks that lie ready in memory.
Then the peak memory of each, in a process of its own, and what filling the bank costs. Weights are random: they do not
change the time. No step has correction clicks, so that all three do the same. --out FILE keeps the figures as JSON.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.augment import build_augmentation
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import tile
from rootsam_lib.results import provenance, write_json
from rootsam_lib.training.config import stage1, stage2
from rootsam_lib.training.devices import build_accelerator
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.step import Plan, batch_loss, prepare_step, train_step

KINDS = ("a", "b", "ram", "thread", "c")


class Setting:
    """One model at one patch size: its bank on disk and the three kinds of step."""

    def __init__(self, name: str, size: int, folder: Path, kinds: tuple[str, ...]):
        make = stage1 if size == 512 else stage2
        # Rates of 0: a model of random weights must not walk off during the measurement.
        self.config = make(name, patch_size=size, lr=1e-12, correction_share=0.0)
        self.accelerator = build_accelerator()
        self.model = build_sam(name, weights=None).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(self.trained, lr=1e-12))
        scans = synthetic_scans("train", 2, seed=0, height=1024, width=1024)
        patches = sorted((p for s in scans for p in tile(s, size)), key=lambda p: -p.mask.sum())[:4]
        pipeline = build_augmentation(size)
        started = time.perf_counter()
        self.bank = FeatureBank(
            self.model, patches, pipeline, self.config.views, dtype=torch.bfloat16, folder=folder, most_gb=8
        )
        if kinds != ("a",):
            self.bank.fill(0)
        self.fill_seconds = (time.perf_counter() - started) / (len(patches) * self.config.views)
        self.ram = FeatureBank(self.model, patches, pipeline, self.config.views, dtype=torch.bfloat16, place="memory")
        if "ram" in kinds:
            self.ram.fill(0)
        self.thread, self.coming = ThreadPoolExecutor(1), None
        self.live = FeatureBank(self.model, patches, pipeline, dtype=torch.bfloat16, most_gb=0)
        count = min(self.config.batch_size, len(patches))
        self.chosen = (np.arange(count), np.zeros(count, int))
        if "c" in kinds:
            self.ready = self.bank.batch(*self.chosen, self.accelerator.device)

    def step(self, kind: str) -> None:
        """One step of a kind."""
        if kind == "c":
            rngs = [np.random.default_rng(i) for i in range(len(self.ready.masks))]
            with self.accelerator.autocast():
                loss, _ = batch_loss(self.model, self.ready, self.config, 0, rngs, Plan((5, 2)))
            loss.backward()
            self.accelerator.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            bank = {"a": self.live, "ram": self.ram}.get(kind, self.bank)
            ready = self.coming.result() if kind == "thread" and self.coming else None
            if kind == "thread":
                prepare = partial(prepare_step, self.accelerator, bank, self.config, 0, 0, self.chosen)
                self.coming = self.thread.submit(prepare)
            train_step(self.model, self.optimizer, self.accelerator, bank, self.config, 0, 0, self.chosen, ready)


def own_peak_megabytes() -> float:
    """This process's peak resident memory. getrusage would also count the process that started it (Linux)."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


def peak_megabytes(name: str, size: int, kind: str) -> float:
    """Peak resident memory of a fresh process that makes three steps of one kind."""
    command = [sys.executable, __file__, name, "--size", str(size), "--memory", kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print one block a model and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["nano", "tiny"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, choices=(512, 1024), help="only this patch size")
    parser.add_argument("--memory", choices=KINDS, help="make three steps of this kind and print the peak memory in MB")
    parser.add_argument("--out", type=Path, help="keep the figures in this results file")
    options = parser.parse_args()
    os.environ.setdefault("ROOTSAM_PROGRESS", "0")
    sizes = (options.size,) if options.size else (512, 1024)
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(options.models[0], sizes[0], Path(folder) / "bank", (options.memory,))
            for _ in range(3):
                setting.step(options.memory)
        print(own_peak_megabytes())
        return
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for name in options.models:
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                setting = Setting(name, size, Path(folder) / "bank", KINDS)
                times = {kind: [] for kind in KINDS}
                for turn in range(options.rounds + 1):
                    for kind in KINDS:
                        started = time.perf_counter()
                        setting.step(kind)
                        times[kind] += [time.perf_counter() - started] if turn else []
            a, b, ram, thread, c = (median(times[kind]) for kind in KINDS)
            patches, views, refresh = len(setting.chosen[0]), setting.config.views, setting.config.refresh
            memory = {kind: peak_megabytes(name, size, kind) for kind in KINDS}
            fill, saved = setting.fill_seconds, (a - b) / patches
            each_epoch = saved - refresh * views * fill
            paid = f"{views * fill / each_epoch:.1f} epochs" if each_epoch > 0 else "never"
            row = {"model": name, "size": size, "batch": patches, "a": a, "b": b, "c": c, "peak_mb": memory}
            row |= {"ram": ram, "thread": thread}
            rows.append(row | {"fill_seconds_per_view": fill, "view_mb": setting.bank.view_bytes / 1e6})
            print(
                f"\n{name} at {size} px, batch {patches}\n"
                f"  (a) encoder on every batch  {a:7.3f} s a step   peak {memory['a']:6.0f} MB\n"
                f"  (b) feature bank, warm      {b:7.3f} s a step   peak {memory['b']:6.0f} MB\n"
                f"  (c) decoder alone           {c:7.3f} s a step   peak {memory['c']:6.0f} MB\n"
                f"  a / b = {a / b:.1f}   b / c = {b / c:.2f}\n"
                f"  bank in RAM: {ram / c:.2f} c, with a thread that prepares steps: {thread / c:.2f} c\n"
                f"  filling the bank: {fill:.3f} s and {setting.bank.view_bytes / 1e6:.1f} MB a view; "
                f"{views} views a patch, {refresh:.0%} of them anew each epoch, paid for after {paid}"
            )
    if options.out:
        about = {"title": "Seconds a training step", "meaning": __doc__, "threads": torch.get_num_threads()}
        write_json(options.out, about | {"rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
