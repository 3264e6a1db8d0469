"""Sets of scans behind one call, `load_scans`: drawn ones, SegRoot, or any folder of your own images and masks."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch

from rootsam_lib import checked
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.folders import Entry, check_split, load_entries, read_folder, spread
from rootsam_lib.data.scans import (
    Scan,
    check_leaks,
    grouped_split,
    leak_report,
    parse_tube,
)
from rootsam_lib.results import cache_dir, downloader, progress, read_json, shown

SOURCES = ("synthetic", "segroot", "folder")
SYNTHETIC_COUNTS = {"train": 24, "valid": 4, "test": 8}
SEGROOT_URL = "https://raw.githubusercontent.com/wtwtwt0330/SegRoot/{commit}/data/data_raw/"


def load_scans(
    source: str,
    split: str,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (1024, 1024),
    **options: object,
) -> list[Scan]:
    """Scans of one part of one source; `split` is "train", "valid", "test" or "all".

    - "synthetic": drawn from `seed` at `size` (height, width) with exact masks; `limit` scans, else 24, 4 and 8.
    - "segroot": `read_segroot`, with its published split; `data_dir` names an existing copy.
    - "folder": `read_folder` over your own images and masks in `data_dir`; `options` belong to it.

    `data_dir` falls back on the environment variable ROOTSAM_DATA. At most `limit` scans, spread over the part.
    Raises ValueError for an unknown source or split, and what the readers raise.
    """
    check_split(split, limit, seed)
    if source == "synthetic" and data_dir:
        raise ValueError(f"data_dir is {shown(data_dir)}, but source is synthetic: give source 'folder' (DATA folder).")
    if source in ("synthetic", "segroot") and (strange := sorted(options.keys() - {"say"})):
        raise ValueError(f"{strange[0]} is for source 'folder' only: leave it out of source {source!r}.")
    if source == "synthetic":
        parts = SYNTHETIC_COUNTS if split == "all" else [split]
        scans = [s for part in parts for s in synthetic_scans(part, limit or SYNTHETIC_COUNTS[part], seed, *size)]
        return spread(scans, limit)
    if source == "segroot":
        return read_segroot(split, data_dir, limit)
    if source == "folder":
        data_dir = data_dir or os.environ.get("ROOTSAM_DATA")
        if not data_dir:
            raise ValueError("source 'folder' needs data_dir (or ROOTSAM_DATA): the folder of your images and masks.")
        return read_folder(data_dir, split, limit=limit, seed=seed, **options)
    raise ValueError(f"source {source!r} is unknown; choose one of {', '.join(SOURCES)}.")


def load_parts(
    source: str,
    test_split: str = "test",
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    val_share: float = 0.2,
    **options: object,
) -> dict[str, list[Scan]]:
    """The three parts that an honest score needs: {"train": [...], "val": [...], "test": [...]}.

    "val" is cut out of the train split, by tube: the best epoch is chosen and the learning rate lowered on it, so
    that the scans of `test_split` ("test", or "valid" where the test images are not at hand) are looked at once, at the
    end. `limit` (0 or None: all) bounds the train and the test split each; `options` belong to `read_folder`. Raises
    what `load_scans` raises, and ValueError for a part without any root and for a picture that lies in two parts, see
    `check_leaks`.
    """
    if test_split not in ("valid", "test"):
        raise ValueError(f"test_split {test_split!r} is unknown; choose valid or test (never train: it would leak).")
    checked("limit", limit or 0, 0, whole=True)
    checked("val_share", val_share, 0, 0.99, above=True)
    seed = checked("seed", seed, 0, whole=True)
    train = load_scans(source, "train", data_dir, limit or None, seed, **options)
    if len({scan.tube for scan in train}) < 2:
        raise ValueError(
            f"all {len(train)} scans of the train split are of one tube, and others are needed to choose the best "
            "epoch on: raise LIMIT, or add scans of other tubes."
        )
    shares = {"train": 1 - val_share, "val": val_share}
    parts = grouped_split(train, shares, np.random.default_rng(seed))
    options["say"] = lambda sentence: None  # of the whole folder, and said already
    parts |= {"test": load_scans(source, test_split, data_dir, limit or None, seed, **options)}
    for part, scans in parts.items():
        if scans and not any(scan.mask is None or scan.mask.any() for scan in scans):
            raise ValueError(
                f"no scan of the {part} part has a root ({len(scans)}, first: {scans[0].name}): add annotated scans "
                "with roots, or take another seed (SEED)."
            )
    check_leaks(parts)
    return parts


def describe(source: str, test_split: str, parts: Mapping[str, Sequence[Scan]]) -> dict[str, object]:
    """A results file's title and data entry: what the scores were measured on, toy or real, and which tubes leak."""
    titles = {
        "synthetic": "Embedded toy: drawn scans",
        "segroot": f"Real scans: SegRoot ({test_split} split)",
        "folder": f"Your own scans ({test_split} split)",
    }
    data = {"source": source, "test_split": test_split, "real": source != "synthetic"}
    if source == "segroot":
        data["masks"] = "as published, but the white frame below the scans is no root (read_segroot)"
    data |= {"scans": {part: [scan.name for scan in scans] for part, scans in parts.items()}}
    return {"title": titles[source], "data": data | {"tubes_in_several_parts": leak_report(parts)}}


def segroot_index() -> dict:
    """SegRoot's commit, dpi and published split (seed 42: 39 train, 13 valid, 13 test scans), with the SHA-256 of every
    file where it is known (null where it is not: the 13 test scans)."""
    return read_json(Path(__file__).with_name("segroot.json"))


def read_segroot(split: str, data_dir: str | Path | None = None, limit: int | None = None) -> list[Scan]:
    """Soybean scans of SegRoot (Wang et al. 2019, doi 10.1016/j.compag.2019.05.017): CI-600, 300 dpi, 2550 × 2273 px.

    Split "train", "valid", "test" (published, by image: 8 of its 10 test tubes occur in train or valid too) or "all".
    `data_dir`, or else the environment variable ROOTSAM_DATA, names an existing copy: `data_raw` or a folder that holds
    it. Without either, the files are downloaded from the pinned commit, once, into ROOTSAM_CACHE or the user's cache
    folder. SegRoot states no licence: credit it and do not redistribute it. Files are checked by SHA-256; a warning
    counts those whose checksum is not known.

    The last two rows of every scan are the scanner program's white frame, and 19 of the 52 masks of train and valid
    call its dashes root. They are soil here, in all masks: see `without_frame`.

    Raises FileNotFoundError when the copy lacks a file, ValueError for a file that is not the published one,
    ConnectionError when a download fails.
    """
    check_split(split, limit)
    index = segroot_index()
    parts = index["split"] if split == "all" else {split: index["split"][split]}
    sums = {name: known for part in parts.values() for name, known in part.items()}
    names = spread(sorted(sums), limit)
    files = {f"{name}.jpg": sums[name]["image"] for name in names}
    files |= {f"{name}-mask.jpg": sums[name]["mask"] for name in names}
    copy = data_dir or os.environ.get("ROOTSAM_DATA")
    folder = _existing_copy(Path(copy).expanduser(), files, split) if copy else _download(files, index["commit"])
    if unknown := sum(known is None for known in files.values()):
        warnings.warn(f"SegRoot {split}: checksum not known for {unknown} files: not verified.", stacklevel=2)
    entries = [Entry(folder / f"{n}.jpg", folder / f"{n}-mask.jpg", n, parse_tube(n), None) for n in names]
    return [without_frame(s) for s in load_entries(entries, f"SegRoot {split}", dpi=index["dpi"], mask_coding="0/255")]


def without_frame(scan: Scan) -> Scan:
    """The scan with a mask in which the white rows at its lower edge, four at most, are no root. (Mean grey above 200:
    soil is far darker.)"""
    frame = 0
    while frame < 4 and scan.image[-1 - frame].mean() > 200:
        frame += 1
    mask = scan.mask.copy()
    mask[len(mask) - frame :] = False
    return replace(scan, mask=mask)


def _existing_copy(data_dir: Path, files: Mapping[str, str | None], split: str) -> Path:
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir} is not a folder; set data_dir (or ROOTSAM_DATA) to a copy of SegRoot.")
    folder = next((found.parent for found in data_dir.rglob(next(iter(files)))), data_dir)
    for name, known in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{shown(folder / name)} of SegRoot's {split} split does not exist; add it, or leave data_dir and "
                "ROOTSAM_DATA unset to download it."
            )
        if known and pooch.file_hash(folder / name) != known:
            raise ValueError(
                f"{shown(folder / name)} is not SegRoot's file (its SHA-256 differs); copy or download it again."
            )
    return folder


def _download(files: Mapping[str, str | None], commit: str) -> Path:
    url = SEGROOT_URL.format(commit=commit)
    cache = cache_dir() / "segroot"
    registry = {name: known and f"sha256:{known}" for name, known in files.items()}
    store = pooch.create(cache, base_url=url, registry=registry, retry_if_failed=2)
    fetch = downloader()
    pooch.get_logger().setLevel("WARNING")  # one bar for all instead of a line a file
    cached = all((cache / name).is_file() for name in files)
    for name in progress(files, "Download SegRoot", "file", disable=cached):
        try:
            store.fetch(name, downloader=fetch)
        except OSError as error:  # also of a malformed proxy, which is a ValueError as well
            why = error if isinstance(error, ConnectionError) else type(error).__name__
            raise ConnectionError(
                f"{url}{name} could not be downloaded to {cache} ({why}); check the connection, the proxy's "
                "settings and the disk, or set ROOTSAM_DATA to a folder that holds SegRoot's data_raw."
            ) from None
        except ValueError:  # pooch keeps no file whose checksum differs
            raise ValueError(f"{url}{name} arrived truncated or changed (its SHA-256 differs); run it again.") from None
    return cache
