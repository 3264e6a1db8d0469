"""Sets of scans behind one call, `load_scans`: drawn ones, SegRoot, or any folder of your own images and masks."""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pooch

from rootsam_lib import checked
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.images import MAX_MEGAPIXELS, checked_dpi, open_image, read_image, resolution
from rootsam_lib.data.masks import checked_coding, checked_exclusion, find_coding, read_exclusion, read_mask
from rootsam_lib.data.scans import (
    Scan,
    check_leaks,
    describe_groups,
    grouped_split,
    leak_report,
    parse_date,
    parse_tube,
)
from rootsam_lib.results import cache_dir, downloader, progress, read_json, shown

SOURCES = ("synthetic", "segroot", "folder")
SPLITS = ("train", "valid", "test", "all")
SYNTHETIC_COUNTS = {"train": 24, "valid": 4, "test": 8}
FOLDER_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
SEGROOT_URL = "https://raw.githubusercontent.com/wtwtwt0330/SegRoot/{commit}/data/data_raw/"

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"}
# Images, too, but not read:
_OTHER_SUFFIXES = {".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".pgm", ".ppm", ".psd", ".svg", ".pdf", ".npy"}
_OTHER_SUFFIXES |= {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raw", ".czi", ".nd2", ".lif", ".svs"}
IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_MASK_FOLDERS = {"masks", "mask", "masks_pixel_gt", "gt", "groundtruth", "ground_truth", "annotations", "labels"}
_PART_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_PART_FOLDERS |= {f"{name}{end}": part for name, part in _PART_FOLDERS.items() for end in ("_set", "ing", "_data")}
_MASK_NAME = re.compile(
    r"^(?:gt_|mask_)(.+)$|^(.+)[-_ .](?:masks?|gt|labels?|seg|segmentations?|annotations?)$", re.IGNORECASE
)
_LIKE_MASK = re.compile(
    r"(?:^|[-_ .])(?:masks?|gt|labels?|seg|segmentations?|annotations?)(?=[-_ .\d]|$)", re.IGNORECASE
)
_RULE = "names such as GT_X, X-mask, X_seg are taken for masks of an image X; rename what is none"
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
    **options: object,
) -> list[Scan]:
    """Scans of one part of one source; `split` is "train", "valid", "test" or "all".

    - "synthetic": drawn from `seed` at `size` (height, width) with exact masks; `limit` scans, else 24, 4 and 8.
    - "segroot": `read_segroot`, with its published split; `data_dir` names an existing copy.
    - "folder": `read_folder` over your own images and masks in `data_dir`; `options` belong to it.

    `data_dir` falls back on the environment variable ROOTSAM_DATA. At most `limit` scans, spread over the part.
    Raises ValueError for an unknown source or split, and what the readers raise.
    """
    _check(split, limit, seed)
    if source == "synthetic" and data_dir:
        raise ValueError(f"data_dir is {shown(data_dir)}, but source is synthetic: give source 'folder' (DATA folder).")
    if source in ("synthetic", "segroot") and (strange := sorted(options.keys() - {"say"})):
        raise ValueError(f"{strange[0]} is for source 'folder' only: leave it out of source {source!r}.")
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
    _check(split, limit)
    index = segroot_index()
    parts = index["split"] if split == "all" else {split: index["split"][split]}
    sums = {name: known for part in parts.values() for name, known in part.items()}
    names = _limited(sorted(sums), limit)
    files = {f"{name}.jpg": sums[name]["image"] for name in names}
    files |= {f"{name}-mask.jpg": sums[name]["mask"] for name in names}
    copy = data_dir or os.environ.get("ROOTSAM_DATA")
    folder = _existing_copy(Path(copy).expanduser(), files, split) if copy else _download(files, index["commit"])
    if unknown := sum(known is None for known in files.values()):
        warnings.warn(f"SegRoot {split}: checksum not known for {unknown} files: not verified.", stacklevel=2)
    entries = [Entry(folder / f"{n}.jpg", folder / f"{n}-mask.jpg", n, parse_tube(n), None) for n in names]
    return [without_frame(s) for s in _load_all(entries, f"SegRoot {split}", dpi=index["dpi"], mask_coding="0/255")]


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


def read_folder(
    data_dir: str | Path,
    split: str = "all",
    *,
    need_masks: bool = True,
    dpi: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    mask_coding: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    group_by: str | None = None,
    exclude: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> list[Scan]:
    """Scans from a folder of images and masks, subfolders included. An image X finds its mask as X-mask, X_mask, GT_X
    or mask_X beside it, or under the same name (or one of those) where `images` is replaced by `masks` or `GT`.

    Where folders are called train, valid (val) and test, those are the split; else `grouped_split` makes one from
    `seed`, 0.7 / 0.15 / 0.15, that keeps the scans of one group together: a tube, or what `group_by`, a regular
    expression, finds in the name or path (its first bracket, or all of it). An image without is a group of its own.
    With `need_masks=False` images without a mask are read too. `exclude`: see `masks.read_exclusion`.

    What is found in the files, of all of the folder whatever the split, goes to `say` in one sentence each: the groups;
    the resolution (`images.resolution`, unless `dpi` gives it in dots per inch; without any, `mm_per_px` is None); and
    what is root in the masks (`masks.find_coding`, unless `mask_coding` gives it).

    Raises FileNotFoundError for a missing or empty folder, ValueError for an image without a mask (before any file is
    opened), a mask of another size or coding, and any file that cannot be read.
    """
    _check(split, limit, seed)
    if mask_coding is not None:
        checked_coding(mask_coding)
    root = Path(data_dir).expanduser()
    found = find_pairs(root, need_masks, group_by)
    if exclude is not None:
        checked_exclusion(exclude, [entry.name for entry in found])
    entries = found if split == "all" else _part(found, split, root, seed, group_by, say)
    say(folder_resolution(found, dpi))
    masks = [entry.mask for entry in found if entry.mask]
    if masks:
        mask_coding, what = find_coding(masks, max_megapixels, mask_coding)
        say(what)
    how = {"dpi": dpi, "mask_coding": mask_coding, "max_megapixels": max_megapixels, "exclude": exclude}
    return _load_all(_limited(entries, limit), f"{root.name} {split}", **how)


def _part(
    entries: Sequence[Entry], split: str, root: Path, seed: int, group_by: str | None, say: Callable[[str], object]
) -> list[Entry]:
    """The entries of one split, the folders' own or one by groups; the groups are said, and leaks warned about."""
    groups, doubt = describe_groups({entry.name: entry.tube for entry in entries}, group_by)
    say(groups)
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.part:
            parts.setdefault(entry.part, []).append(entry)
    if parts and split not in parts:
        raise ValueError(f"{shown(root)} has a folder for {', '.join(sorted(parts))}, but none for {split}; add it.")
    if parts and (loose := [entry.name for entry in entries if not entry.part]):
        doubt += f" {len(loose)} images lie in none of these parts and are left out (first: {loose[0]})."
    if leaks := leak_report(parts):
        doubt += f" tubes in more than one part of the split: {', '.join(leaks)}."
    elif not parts and all(entry.tube == entry.name for entry in entries):
        doubt += " no tube in the file names (…_T012_…), so the split is by image."
    if doubt:
        warnings.warn(f"{shown(root)}: {doubt.strip()}", stacklevel=3)
    return (parts or grouped_split(entries, FOLDER_SHARES, np.random.default_rng(seed)))[split]


def folder_resolution(entries: Iterable[Entry], dpi: float | None = None, strict: bool = True) -> str:
    """The dots per inch of all these images and where they are from, in one sentence; dpi: of all, whatever they say.

    Raises ValueError for a resolution that none can have; where not strict, only for dpi itself.
    """
    if dpi is not None:
        return f"resolution: {checked_dpi(dpi):g} dpi as given"
    sources: Counter[str] = Counter()
    for entry in entries:
        try:
            sources[resolution(entry.image)[1]] += 1
        except ValueError:
            if strict:
                raise
            sources["a name that cannot be"] += 1
    said = "; ".join(f"{source} ({count} image{'s' * (count > 1)})" for source, count in sources.most_common())
    none = " (give dpi, --dpi on the command line, for millimetres: without it lengths are in pixels)"
    return f"resolution: {said}{none if 'no resolution' in sources else ''}"


def find_pairs(root: Path, need_masks: bool, group_by: str | None = None) -> list[Entry]:
    """The images of a folder with their masks, by the names that `read_folder` knows, without opening any.

    Every entry has a name of its own, in UTF-8 and of at most 200 bytes, so that results can be called by it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{shown(root)} is not a folder: give a folder of images.")
    try:
        pattern = None if group_by is None else re.compile(group_by)
    except (re.error, TypeError) as error:
        sentence = f"group_by is {group_by!r}, no regular expression ({error}): try one as '^(plot\\d+)'."
        raise ValueError(sentence) from None
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    unread: list[Path] = []
    linked: list[Path] = []
    for path in [root, *sorted(root.rglob("*"))]:
        inside, suffix = path.relative_to(root), path.suffix.lower()
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                raise PermissionError(f"{shown(path)} may not be read: give yourself the right to, or take it out.")
            if path != root and path.is_symlink():
                linked.append(inside)
            continue
        if suffix in _OTHER_SUFFIXES:
            unread.append(inside)
        if suffix not in _SUFFIXES:
            continue
        key, is_mask = _key(inside)
        if need_masks and any(folder.endswith("nomask") for folder in key[:-1]):
            continue  # PRMI names a folder so where nothing was annotated
        table, kind = (masks, "masks") if is_mask else (images, "images")
        if key in table:
            raise ValueError(
                f"{shown(table[key])} and {shown(path)} are two {kind} of one name; "
                f"keep one, or call a mask X-mask.png ({_RULE})."
            )
        table[key] = path
    if unread:
        what = f"{len(unread)} files are of a kind that is not read (first: {shown(unread[0])})"
        warnings.warn(f"{shown(root)}: {what}: save them as PNG.", stacklevel=3)
    if linked:
        what = f"{len(linked)} linked folders are not looked into (first: {shown(linked[0])})"
        warnings.warn(f"{shown(root)}: {what}: give the folder itself, or link the files.", stacklevel=3)
    if not images:
        only = f", but {len(masks)} masks ({_RULE})" if masks else ""
        raise FileNotFoundError(
            f"{shown(root)} holds no images ({', '.join(sorted(_SUFFIXES))}){only}: check the folder's name."
        )
    if odd := [path for path in images.values() if _LIKE_MASK.search(path.stem)]:
        what = f"{len(odd)} images are called like masks (first: {shown(odd[0].name)})"
        warnings.warn(f"{shown(root)}: {what}: if they are, call them X-mask, where X is the image.", stacklevel=3)
    bare = [path for key, path in images.items() if key not in masks]
    if need_masks and bare:
        none = f"has no mask ({len(bare)} of {len(images)} have none); names tried: {_SCHEMES}."
        raise ValueError(f"{shown(bare[0])} {none}")
    if orphans := [path for key, path in masks.items() if key not in images]:
        what = f"{len(orphans)} masks belong to no image (first: {shown(orphans[0].name)})"
        warnings.warn(f"{shown(root)}: {what}: {_RULE}.", stacklevel=3)
    stems = Counter(key[-1] for key in images)
    taken: dict[str, Path] = {}
    entries = []
    for key, path in images.items():
        name = _name(path.stem if stems[key[-1]] == 1 else "-".join((*key[:-1], path.stem)))
        if (other := taken.setdefault(name.lower(), path)) != path:
            raise ValueError(f"{shown(other)} and {shown(path)} would both be called {name}: rename one of them.")
        group = parse_tube(path.stem) if pattern is None else _group(pattern, path.relative_to(root))
        part = next((_PART_FOLDERS[folder] for folder in key[:-1] if folder in _PART_FOLDERS), None)
        entries.append(Entry(path, masks.get(key), name, _name(group or name), part))
    if pattern is not None and all(entry.tube == entry.name for entry in entries):
        raise ValueError(f"group_by is {group_by!r}, which fits no name (first: {entries[0].name}): correct it.")
    return entries


def _group(pattern: re.Pattern, inside: Path) -> str:
    """What a pattern finds in a file's name, or else in its path: its first bracket, or all of it; "" if nothing."""
    found = pattern.search(inside.stem) or pattern.search(inside.with_suffix("").as_posix())
    return (found[1] if pattern.groups else found[0]) or "" if found else ""


def _name(name: str) -> str:
    """A name that every file system, table and terminal takes: bytes that are no UTF-8 as %e9, a long one shortened."""
    name = os.fsencode(name).decode("utf-8", "backslashreplace").replace("\\x", "%")
    if len(name.encode()) <= 200:
        return name
    return name.encode()[:180].decode("utf-8", "ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _key(inside: Path) -> tuple[tuple[str, ...], bool]:
    """What an image and its mask share (the folders but for images/ and masks/, the stem but for GT_ or -mask), and
    whether this file is the mask."""
    folders = [part.lower() for part in inside.parts[:-1]]
    stem, in_masks = inside.stem, any(folder in _MASK_FOLDERS for folder in folders)
    if affix := _MASK_NAME.match(stem):
        stem = affix[1] or affix[2]
    elif in_masks:  # PlantRootSeg: GT2016… and …_FRMI_BW2_01
        stem = re.sub(r"^GT(?=\d)|_BW2(?=_|$)", "", stem)
    kept = [folder for folder in folders if folder not in _MASK_FOLDERS | IMAGE_FOLDERS]
    return (*kept, stem.lower()), in_masks or affix is not None


def _load_all(entries: Sequence[Entry], what: str, **how: object) -> list[Scan]:
    return [load_entry(entry, **how) for entry in progress(entries, what, "scan", disable=len(entries) <= 4)]


def load_entry(
    entry: Entry,
    dpi: float | None = None,
    mask_coding: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    exclude: str | Path | None = None,
) -> Scan:
    """Read one image and its mask. None as dpi or mask_coding: look for it in this image and mask alone.

    Raises FileNotFoundError or ValueError, in one sentence, for what cannot be read or does not fit.
    """
    dpi = resolution(entry.image)[0] if dpi is None else checked_dpi(dpi)
    opened = open_image(entry.image, max_megapixels)
    image, mask = read_image(opened), None
    if entry.mask is not None:
        drawn = open_image(entry.mask, max_megapixels)
        mask = read_mask(drawn, mask_coding, max_megapixels)
        _check_fit(image, mask, opened.info["orientation"], drawn.info["orientation"], entry)
    excluded = None if exclude is None else read_exclusion(exclude, entry.name, image.shape[:2])
    if mask is not None and excluded is not None:
        mask = mask & ~excluded  # what counts nowhere is no root to learn from either
    size = 25.4 / dpi if dpi else None
    date = next(filter(None, map(parse_date, dated_names(entry))), "")
    return Scan(image, mask, entry.name, entry.tube, date, size, excluded)


def dated_names(entry: Entry) -> list[str]:
    """Where a scan's date is looked for, in order: its name, and the two folders that it lies in."""
    return [entry.name, *(folder.name for folder in entry.image.parents[:2])]


def _check_fit(image: np.ndarray, mask: np.ndarray, of_image: int, of_mask: int, entry: Entry) -> None:
    """Refuse a mask of another size than its image, or one that may have been drawn before a turn by `of_image`."""
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        turned = " (turned by its EXIF orientation)" if of_image > 4 else ""
        raise ValueError(
            f"{shown(entry.mask)} is {mask.shape[1]} × {mask.shape[0]} pixels, but its image "
            f"{shown(entry.image.name)} is {width} × {height}{turned}; export the mask at the image's size."
        )
    # A quarter turn (5 to 8) with an upright mask can be told by the sides; a half turn or a square cannot.
    if of_image != of_mask and (of_mask != 1 or of_image < 5 or height == width):
        raise ValueError(
            f"{shown(entry.image)} has EXIF orientation {of_image}, but its mask {shown(entry.mask.name)} {of_mask}, "
            "and both ways of laying it fit: save both upright, without an EXIF orientation."
        )


def _limited(items: list[_T], limit: int | None) -> list[_T]:
    """At most `limit` items, spread evenly over the list: neighbours in a sorted list are scans of one tube."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _check(split: str, limit: int | None, seed: int = 0) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    if limit is not None:
        checked("limit", limit, 1, whole=True)
    checked("seed", seed, 0, whole=True)
