"""The command line: run the lessons headless, segment a folder of scans, print a table of results.

`python -m rootsam_lib tutorial [--profile NAME] [-p NAME VALUE ...] [--only 01,03]`
`python -m rootsam_lib segment FOLDER --model RUN [--out DIR] [--dpi N] ...`
`python -m rootsam_lib table FILE [--table NAME]`

What a command needs is imported when it is chosen: torch and the notebook packages are slow to import.
"""

import argparse
import sys
from pathlib import Path


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
    table.add_argument("file", type=Path)
    table.add_argument("--table", default="fixed prompts", help="fixed prompts, automatic, whole scans or correction")
    table.add_argument("--columns", default="", help="metrics to show, such as root_iou,pooled_dice")
    scans = commands.add_parser("segment", help="find and measure the roots of a folder of scans")
    scans.add_argument("folder", type=Path, help="images (png, jpg, tif), of any size; masks are not needed")
    scans.add_argument("--model", required=True, help="a trained stage's folder or checkpoint, or nano")
    scans.add_argument("--out", type=Path, help="where to write (default: FOLDER-roots, beside the folder)")
    scans.add_argument(
        "--input-scale", type=float, help="how much tiles are enlarged (default: what fits the images' roots)"
    )
    scans.add_argument("--root-width", type=float, help="about how wide the images' roots are, in px: sets the scale")
    scans.add_argument("--tile", type=int, help="tile side in px (default: the stage's patch size, at most 1024)")
    scans.add_argument("--dpi", type=float, help="resolution of all scans (default: as files say; without any, in px)")
    scans.add_argument("--mask-coding", help="what is root in masks beside the images, such as 0/1 (default: found)")
    scans.add_argument("--max-megapixels", type=float, help="larger images are not read (default: 250)")
    scans.add_argument("--prompts", type=Path, help="points: a CSV with columns scan, x, y, label (1 root, 0 soil)")
    scans.add_argument("--tta", action="store_true", help="also look at flipped tiles: four times the work")
    scans.add_argument("--window-mm", type=float, help="tube length between locations (default: the image's height)")
    scans.add_argument("--tube-angle", type=float, default=45.0, help="degrees to the horizontal (default: 45)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "segment":
            from rootsam_lib.apps.segment import segment_command

            return segment_command(options)
        from rootsam_lib.lessons import runner

        return runner.table_command(options) if options.command == "table" else runner.tutorial_command(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
