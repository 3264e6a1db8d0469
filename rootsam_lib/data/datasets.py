"""Sets of scans behind one call, `load_scans`: drawn ones, SegRoot, or any folder of your own images and masks."""

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pooch

from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import (
    Scan,
    grouped_split,
    leak_report,
    open_image,
    parse_date,
    parse_dpi,
    parse_tube,
    read_image,
    read_mask,
)
from rootsam_lib.results import cache_dir, progress

SOURCES = ("synthetic", "segroot", "folder")
SPLITS = ("train", "valid", "test", "all")
SYNTHETIC_COUNTS = {"train": 24, "valid": 4, "test": 8}
FOLDER_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
SEGROOT_URL = "https://raw.githubusercontent.com/wtwtwt0330/SegRoot/{commit}/data/data_raw/"

_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
_IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_MASK_FOLDERS = {"masks", "mask", "masks_pixel_gt", "gt", "groundtruth", "ground_truth", "annotations", "labels"}
_PART_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_MASK_NAME = re.compile(r"^(?:gt_|mask_)(.+)$|^(.+)[-_ ](?:masks?|gt|label)$", re.IGNORECASE)
_SCHEMES = "X-mask, X_mask, GT_X or mask_X beside it, images/X with masks/X, Images/X with GT/GT_X"
_T = TypeVar("_T")


class Entry(NamedTuple):
    """An image of a folder that is not read yet, and the mask that belongs to it, None where there is none."""

    image: Path
    mask: Path | None
    name: str
    tube: str
    part: str | None  # the split that a folder's name states


def load_scans(
    source: str,
    split: str,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (1024, 1024),
    *,
    dpi: float | None = None,
    need_masks: bool = True,
) -> list[Scan]:
    """Scans of one part of one source; `split` is "train", "valid", "test" or "all".

    - "synthetic": drawn from `seed` at `size` (height, width) with exact masks; `limit` scans, else 24, 4 and 8.
    - "segroot": `read_segroot`, with its published split; `data_dir` names an existing copy.
    - "folder": `read_folder` over your own images and masks in `data_dir`; `dpi` and `need_masks` belong to it.

    `data_dir` falls back on the environment variable ROOTSAM_DATA. At most `limit` scans, spread over the part.
    Raises ValueError for an unknown source or split, and what the readers raise.
    """
    _check(split, limit)
    if source == "synthetic":
        parts = SYNTHETIC_COUNTS if split == "all" else [split]
        scans = [s for part in parts for s in synthetic_scans(part, limit or SYNTHETIC_COUNTS[part], seed, *size)]
        return _limited(scans, limit)
    if source == "segroot":
        return read_segroot(split, data_dir, limit)
    if source == "folder":
        data_dir = data_dir or os.environ.get("ROOTSAM_DATA")
        if not data_dir:
            raise ValueError("source 'folder' needs data_dir (or ROOTSAM_DATA): the folder of your images and masks.")
        return read_folder(data_dir, split, need_masks=need_masks, dpi=dpi, limit=limit, seed=seed)
    raise ValueError(f"source {source!r} is unknown; choose one of {', '.join(SOURCES)}.")


def load_parts(
    source: str,
    test_split: str = "test",
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    val_share: float = 0.2,
) -> dict[str, list[Scan]]:
    """The three parts that an honest score needs: {"train": [...], "val": [...], "test": [...]}.

    "val" is cut out of the train split, by tube: the best epoch is chosen and the learning rate lowered on it, so
    that the scans of `test_split` ("test", or "valid" where the test images are not at hand) are looked at once, at the
    end. `limit` (0 or None: all) bounds the train and the test split each. Raises what `load_scans` raises.
    """
    if test_split not in ("valid", "test"):
        raise ValueError(f"test_split {test_split!r} is unknown; choose valid or test (never train: it would leak).")
    if limit is not None and limit < 0:
        raise ValueError(f"LIMIT is {limit}: give the most scans per split, or 0 for all.")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}: it must lie between 0 and 1.")
    train = load_scans(source, "train", data_dir, limit or None, seed)
    if len({scan.tube for scan in train}) < 2:
        raise ValueError(
            f"all {len(train)} scans of the train split are of one tube, and others are needed to choose the best "
            "epoch on: raise LIMIT, or add scans of other tubes."
        )
    shares = {"train": 1 - val_share, "val": val_share}
    parts = grouped_split(train, shares, np.random.default_rng(seed))
    return parts | {"test": load_scans(source, test_split, data_dir, limit or None, seed)}


def describe(source: str, test_split: str, parts: Mapping[str, Sequence[Scan]]) -> dict[str, object]:
    """A results file's title and data entry: what the scores were measured on, toy or real, and which tubes leak."""
    titles = {
        "synthetic": "Embedded toy: drawn scans",
        "segroot": f"Real scans: SegRoot ({test_split} split)",
        "folder": f"Your own scans ({test_split} split)",
    }
    data = {"source": source, "test_split": test_split, "real": source != "synthetic"}
    data |= {"scans": {part: [scan.name for scan in scans] for part, scans in parts.items()}}
    return {"title": titles[source], "data": data | {"tubes_in_several_parts": leak_report(parts)}}


def segroot_index() -> dict:
    """SegRoot's commit, dpi and published split (seed 42: 39 train, 13 valid, 13 test scans), with the SHA-256 of every
    file where it is known (null where it is not: the 13 test scans)."""
    return json.loads(Path(__file__).with_name("segroot.json").read_text(encoding="utf-8"))


def read_segroot(split: str, data_dir: str | Path | None = None, limit: int | None = None) -> list[Scan]:
    """Soybean scans of SegRoot (Wang et al. 2019, doi 10.1016/j.compag.2019.05.017): CI-600, 300 dpi, 2550 × 2273 px.

    Split "train", "valid", "test" (published, by image: 8 of its 10 test tubes occur in train or valid too) or "all".
    `data_dir`, or else the environment variable ROOTSAM_DATA, names an existing copy: `data_raw` or a folder that holds
    it. Without either, the files are downloaded from the pinned commit, once, into ROOTSAM_CACHE or the user's cache
    folder. SegRoot states no licence: credit it and
    do not redistribute it. Files are checked by SHA-256; a warning counts those whose checksum is not known.

    Raises FileNotFoundError when the copy lacks a file, ValueError for a file that is not the published one,
    ConnectionError when a download fails.
    """
    _check(split, limit)
    index = segroot_index()
    parts = index["split"] if split == "all" else {split: index["split"][split]}
    sums = {name: known for part in parts.values() for name, known in part.items()}
    names = _limited(sorted(sums), limit)
    files = {f"{name}.jpg": sums[name]["image"] for name in names}
    files |= {f"{name}-mask.jpg": sums[name]["mask"] for name in names}
    data_dir = data_dir or os.environ.get("ROOTSAM_DATA")
    folder = _existing_copy(Path(data_dir), files, split) if data_dir else _download(files, index["commit"])
    if unknown := sum(known is None for known in files.values()):
        warnings.warn(f"SegRoot {split}: checksum not known for {unknown} files: not verified.", stacklevel=2)
    entries = [Entry(folder / f"{n}.jpg", folder / f"{n}-mask.jpg", n, parse_tube(n), None) for n in names]
    return _load_all(entries, index["dpi"], f"SegRoot {split}")


def _existing_copy(data_dir: Path, files: Mapping[str, str | None], split: str) -> Path:
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir} is not a folder; set data_dir (or ROOTSAM_DATA) to a copy of SegRoot.")
    places = [data_dir / place for place in ("data_raw", "data/data_raw", "segroot/data_raw", ".")]
    folder = next((place for place in places if any(place.glob("*-mask.jpg"))), data_dir)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(files)} files asked for from SegRoot's {split} split (first: "
            f"{missing[0]}); add them, or leave data_dir and ROOTSAM_DATA unset to download them."
        )
    for name, known in files.items():
        if known and hashlib.sha256((folder / name).read_bytes()).hexdigest() != known:
            raise ValueError(f"{folder / name} is not SegRoot's file (its SHA-256 differs); copy or download it again.")
    return folder


def _download(files: Mapping[str, str | None], commit: str) -> Path:
    url = SEGROOT_URL.format(commit=commit)
    cache = cache_dir() / "segroot"
    registry = {name: known and f"sha256:{known}" for name, known in files.items()}
    store = pooch.create(cache, base_url=url, registry=registry, retry_if_failed=2)
    pooch.get_logger().setLevel("WARNING")  # one bar for all instead of a line a file
    cached = all((cache / name).is_file() for name in files)
    for name in progress(files, "Download SegRoot", "file", disable=cached):
        try:
            store.fetch(name)
        except ValueError:  # pooch keeps no file whose checksum differs
            raise ValueError(f"{url}{name} arrived truncated or changed (its SHA-256 differs); run it again.") from None
        except OSError as error:
            raise ConnectionError(
                f"{url}{name} could not be downloaded to {cache} ({type(error).__name__}); check the "
                "connection and the disk, or set ROOTSAM_DATA to a folder that holds SegRoot's data_raw."
            ) from None
    return cache


def read_folder(
    data_dir: str | Path,
    split: str = "all",
    *,
    need_masks: bool = True,
    dpi: float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Scan]:
    """Scans from a folder of images and masks, subfolders included. An image X finds its mask as X-mask, X_mask, GT_X
    or mask_X beside it, or under the same name (or one of those) where `images` is replaced by `masks` or `GT`.

    Where folders are called train, valid (val) and test, those are the split; else `grouped_split` makes one by tube
    from `seed`, 0.7 / 0.15 / 0.15. An image without a tube in its name is a group of its own. With `need_masks=False`
    images without a mask are read too. `dpi` is the scanner's resolution in dots per inch; without it `scans.parse_dpi`
    looks for one, else `mm_per_px` is None.

    Raises FileNotFoundError for a missing or empty folder, ValueError for an image without a mask (before any file is
    opened), a mask of another size, and any file that cannot be read.
    """
    _check(split, limit)
    root = Path(data_dir)
    entries = find_pairs(root, need_masks)
    stated = sorted({entry.part for entry in entries if entry.part})
    if split != "all" and stated:
        parts = {part: [entry for entry in entries if entry.part == part] for part in stated}
        if split not in parts:
            raise ValueError(f"{root} has a folder for {', '.join(stated)}, but none for {split}; add it.")
        if leaks := leak_report(parts):
            warnings.warn(f"{root}: tubes in more than one part of the split: {', '.join(leaks)}.", stacklevel=2)
        entries = parts[split]
    elif split != "all":
        if not any(parse_tube(entry.image.stem) for entry in entries):
            warnings.warn(f"{root}: no tube in the file names (…_T012_…), so the split is by image.", stacklevel=2)
        entries = grouped_split(entries, FOLDER_SHARES, np.random.default_rng(seed))[split]
    return _load_all(_limited(entries, limit), dpi, f"{root.name} {split}")


def find_pairs(root: Path, need_masks: bool) -> list[Entry]:
    """The images of a folder with their masks, by the names that `read_folder` knows, without opening any."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; set data_dir to a folder of images.")
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        key, is_mask = _key(inside)
        if need_masks and any(folder.endswith("nomask") for folder in key[:-1]):
            continue  # PRMI names a folder so where nothing was annotated
        table, kind = (masks, "masks") if is_mask else (images, "images")
        if key in table:
            raise ValueError(
                f"{table[key]} and {path} are two {kind} of one name; keep one, or call a mask X-mask.png."
            )
        table[key] = path
    if not images:
        raise FileNotFoundError(f"{root} holds no images ({', '.join(sorted(_SUFFIXES))}); check data_dir.")
    bare = [path for key, path in images.items() if key not in masks]
    if need_masks and bare:
        raise ValueError(f"{bare[0]} has no mask ({len(bare)} of {len(images)} have none); names tried: {_SCHEMES}.")
    if orphans := [path for key, path in masks.items() if key not in images]:
        warnings.warn(f"{root}: {len(orphans)} masks belong to no image (first: {orphans[0].name}).", stacklevel=3)
    stems = Counter(path.stem for path in images.values())
    entries = []
    for key, path in images.items():
        name = path.stem if stems[path.stem] == 1 else "-".join((*key[:-1], path.stem))
        part = next((_PART_FOLDERS[folder] for folder in key[:-1] if folder in _PART_FOLDERS), None)
        entries.append(Entry(path, masks.get(key), name, parse_tube(path.stem) or name, part))
    return entries


def _key(inside: Path) -> tuple[tuple[str, ...], bool]:
    """What an image and its mask share (the folders but for images/ and masks/, the stem but for GT_ or -mask), and
    whether this file is the mask."""
    folders = [part.lower() for part in inside.parts[:-1]]
    stem, in_masks = inside.stem, any(folder in _MASK_FOLDERS for folder in folders)
    if affix := _MASK_NAME.match(stem):
        stem = affix[1] or affix[2]
    elif in_masks:  # PlantRootSeg: GT2016… and …_FRMI_BW2_01
        stem = re.sub(r"^GT(?=\d)|_BW2(?=_|$)", "", stem)
    kept = [folder for folder in folders if folder not in _MASK_FOLDERS | _IMAGE_FOLDERS]
    return (*kept, stem.lower()), in_masks or affix is not None


def _load_all(entries: Sequence[Entry], dpi: float | None, what: str) -> list[Scan]:
    return [load_entry(entry, dpi) for entry in progress(entries, what, "scan", disable=len(entries) <= 4)]


def load_entry(entry: Entry, dpi: float | None) -> Scan:
    """Read one image and its mask. Raises ValueError, in one sentence, for what cannot be read or does not fit."""
    opened = open_image(entry.image)
    image = read_image(opened)
    mask = None if entry.mask is None else read_mask(entry.mask)
    if mask is not None and mask.shape != image.shape[:2]:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        turned = " (turned by its EXIF orientation)" if opened.size != (width, height) else ""
        raise ValueError(
            f"{entry.mask} is {mask_width} × {mask_height} pixels, but its image {entry.image.name} is "
            f"{width} × {height}{turned}; export the mask at the image's size."
        )
    dpi = dpi or parse_dpi(entry.image, opened.info.get("dpi"))
    return Scan(image, mask, entry.name, entry.tube, parse_date(entry.image.stem), 25.4 / dpi if dpi else None)


def _limited(items: list[_T], limit: int | None) -> list[_T]:
    """At most `limit` items, spread evenly over the list: neighbours in a sorted list are scans of one tube."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _check(split: str, limit: int | None) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but must be at least 1 (or None for every scan).")
