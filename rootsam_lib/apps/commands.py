"""The commands `segment` and `merge`: options and processes in, a report and an exit code out."""

import argparse
import os
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rootsam_lib.apps.outputs import Report, merge_shards, parse_shard, scans_told
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.data.images import MAX_MEGAPIXELS
from rootsam_lib.data.points import read_prompts
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import shown
from rootsam_lib.training.devices import keep_freed_memory, launched


def segment_command(options: argparse.Namespace) -> int:
    """Segment a folder as the command line asks, and say what became of it. Returns 1 when a scan failed, else 0."""

    say = partial(tqdm.write, file=sys.stderr)
    shard = None if options.shard is None else parse_shard(options.shard)
    processes, state = launched("WORLD_SIZE"), None
    if processes > 1:  # started by torchrun or `accelerate launch`
        from accelerate import PartialState

        if shard:
            raise ValueError("--shard is for processes that know nothing of each other: leave it out when launched.")
        # Without being told so, accelerate takes each process on a CPU for the only one.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))  # what one may take longer
        shard = state.process_index + 1, processes
        if not state.is_main_process:
            os.environ["ROOTSAM_PROGRESS"] = "0"
    cores = max(1, (os.cpu_count() or 1) // launched("LOCAL_WORLD_SIZE"))
    prompts = read_prompts(options.prompts) if options.prompts else None
    asked = {
        "input_scale": options.input_scale,
        "gain": options.gain,
        "tile_size": options.tile,
        "batch": options.batch,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    predictor = load_predictor(options.model, tta=options.tta, keep=False, **changes)
    workers = min(cores, 8)
    if predictor.model.device.type == "cpu":
        keep_freed_memory()
        predictor.model.fold_norms()
        if cores < 4:  # the model has all of them busy: workers would only take from it
            workers = 0
    fit = options.input_scale is None and options.root_width is None
    if options.root_width is not None:
        predictor = predictor.for_width(options.root_width)
    most = MAX_MEGAPIXELS if options.max_megapixels is None else options.max_megapixels
    beside = Path(options.model).expanduser() / "calibration.json"
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    report = segment_folder(
        options.folder, predictor, options.out, dpi=options.dpi, prompts=prompts, mask_coding=options.mask_coding,
        max_megapixels=most, window_mm=options.window_mm, tube_angle=options.tube_angle, fit=fit, shard=shard,
        brighten=options.gain is None, exclude=options.exclude,
        calibration=options.calibration or (beside if beside.is_file() else None),
        workers=workers if options.workers is None else options.workers, say=say,
    )  # fmt: skip
    if state:
        state.wait_for_everyone()
        report = merge_shards(options.folder, options.out) if state.is_main_process else None
        state.wait_for_everyone()  # whoever ends with an error ends the others
        state.destroy_process_group()
    again = "; mend what is said above and run it again: what is done is not done anew" if not state else ""
    return _say_report(report, again) if report else 0


def merge_command(options: argparse.Namespace) -> int:
    """Merge a folder's shards as the command line asks; 1 when a scan is missing, else 0."""
    return _say_report(merge_shards(options.folder, options.out))


def _say_report(report: Report, todo: str = "") -> int:
    if report.rows or not report.failed:
        before = f" ({report.skipped} of them before)" if report.skipped else ""
        print(f"{scans_told(len(report.rows))} done{before}; table, masks and overlays in {shown(report.table.parent)}")
    if report.failed:
        first = ", ".join(list(report.failed)[:5]) + (", …" if len(report.failed) > 5 else "")
        print(f"{scans_told(len(report.failed))} failed: {first}{todo}", file=sys.stderr)
    return int(bool(report.failed))
