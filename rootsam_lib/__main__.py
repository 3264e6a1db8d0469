"""The command line: `python -m rootsam_lib --help` lists its commands, and each tells its options by `--help`.

What a command needs is imported when it is chosen: torch and the notebook packages are slow to import.
"""

import argparse
import importlib
import sys
import warnings
from pathlib import Path


def _path(text: str) -> Path:
    """A path of the command line; "", as of a variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a path, or . for the current folder")
    return Path(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; one sentence and exit code 2 for what a user can mistype."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib", description="RootSAM from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("tutorial", help="run the notebooks headless, in order")
    run.add_argument("--profile", default="quick", help="a set of parameters from profiles.yaml (default: quick)")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    run.add_argument("--only", default="", help="numbers of the notebooks to run, such as 01,03")
    run.add_argument("--update", action="store_true", help="write the outputs back into notebooks/ (for maintainers)")
    table = commands.add_parser("table", help="print a results file as a Markdown table")
    table.add_argument("file", type=_path)
    table.add_argument("--table", default="fixed prompts", help="fixed prompts, automatic, whole scans or correction")
    table.add_argument("--columns", default="", help="metrics to show, such as root_iou,pooled_dice")
    scans = commands.add_parser("segment", help="find and measure the roots of a folder of scans")
    scans.add_argument("folder", type=_path, help="images (png, jpg, tif), of any size; masks are not needed")
    scans.add_argument("--model", required=True, help="a trained stage's folder or checkpoint, or nano")
    scans.add_argument("--out", type=_path, help="where to write (default: FOLDER-roots, beside the folder)")
    scale = scans.add_mutually_exclusive_group()
    scale.add_argument(
        "--input-scale", type=float, help="how much tiles are enlarged (default: what fits the images' roots)"
    )
    scale.add_argument("--root-width", type=float, help="about how wide the images' roots are, in px: sets the scale")
    scans.add_argument("--gain", type=float, help="how much brighter the model sees them (default: as in training)")
    scans.add_argument("--tile", type=int, help="tile side in px (default: the stage's patch size, at most 1024)")
    scans.add_argument("--dpi", type=float, help="resolution of all scans (default: as files say; without any, in px)")
    scans.add_argument("--mask-coding", help="what is root in masks beside the images, such as 0/1 (default: found)")
    scans.add_argument("--max-megapixels", type=float, help="larger images are not read (default: 250)")
    scans.add_argument("--prompts", type=_path, help="points: a CSV with columns scan, x, y, label (1 root, 0 soil)")
    scans.add_argument("--tta", action="store_true", help="also look at flipped tiles: four times the work")
    scans.add_argument("--window-mm", type=float, help="tube length between locations (default: the image's height)")
    scans.add_argument("--tube-angle", type=float, default=45.0, help="degrees to the horizontal (default: 45)")
    scans.add_argument("--calibration", type=_path, help="what calibrate wrote (default: the model's, if it has one)")
    excluded = "what is no window: left,top,right,bottom;... in px, a mask file, or a folder of them, called as scans"
    scans.add_argument("--exclude", help=excluded)
    field = commands.add_parser("rsml", help="write RSML and RhizoVision's columns for what segment wrote")
    field.add_argument("roots", type=_path, help="the folder that segment wrote")
    field.add_argument("--exclude", help="as it was given to segment")
    series = commands.add_parser("timeseries", help="new and vanished root length of windows that were scanned again")
    series.add_argument("folder", type=_path, help="the images that segment has done, of several dates")
    series.add_argument("--roots", type=_path, help="the folder that segment wrote (default: FOLDER-roots)")
    series.add_argument("--out", type=_path, help="where to write (default: the folder that segment wrote)")
    series.add_argument("--exclude", help="as it was given to segment")
    series.add_argument("--tolerance-px", type=float, default=5.0, help="a root this near is the same one (default: 5)")
    series.add_argument("--least-match", type=float, default=0.15, help="scans that match less are not compared")
    fitting = commands.add_parser("calibrate", help="fit factors for length, area and diameter on annotated scans")
    fitting.add_argument("roots", type=_path, help="the folder that segment wrote from scans with masks")
    fitting.add_argument("--out", type=_path, help="where to write (default: calibration.json in that folder)")
    scans.add_argument("--batch", type=int, help="tiles looked at together (default: by the GPU's size; 1 on a CPU)")
    few = "processes that read and measure (default: one a core up to 8; none on under 4 cores without a GPU)"
    scans.add_argument("--workers", type=int, help=few)
    scans.add_argument("--shard", help="do part 2 of 8 of the scans: 2/8; `merge` puts the parts together")
    merge = commands.add_parser("merge", help="put the shards of a folder together")
    merge.add_argument("folder", type=_path, help="the folder of scans that the shards were given")
    merge.add_argument("--out", type=_path, help="the --out that the shards were given")
    export = commands.add_parser("export", help="write trained weights in another program's format")
    export.add_argument("source", help="a trained stage's folder or checkpoint, or nano")
    export.add_argument("out", type=_path, help="the .pt file (sam2), or the folder (transformers, onnx), to write")
    export.add_argument("--to", required=True, choices=("sam2", "transformers", "onnx"), help="the format")
    export.add_argument("--without-detail", action="store_true", help="leave a detail path out, which is lossy")
    export.add_argument("--scan", type=_path, help="an image on which to say what leaving it out costs")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        return _run(options)


ROOMS = {"tutorial": "lessons.runner", "table": "lessons.runner", "segment": "apps.commands", "merge": "apps.commands"}
ROOMS |= {"rsml": "apps.rsml", "timeseries": "apps.timeseries", "calibrate": "evaluation.calibration"}
ROOMS |= {"export": "apps.weights"}


def _run(options: argparse.Namespace) -> int:
    """Do what the command line asks; 2, after a sentence, for what was mistyped."""
    try:
        room = importlib.import_module(f"rootsam_lib.{ROOMS[options.command]}")  # only what the command needs
        return getattr(room, f"{options.command}_command")(options)
    except (ValueError, OSError) as error:
        from rootsam_lib.results import told

        print(f"error: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
