"""A folder of your own images and masks: which belong together, which split each is in, and reading them."""

import hashlib
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rootsam_lib import checked
from rootsam_lib.data.images import MAX_MEGAPIXELS, checked_dpi, open_image, read_image, resolution
from rootsam_lib.data.masks import checked_coding, checked_exclusion, find_coding, read_exclusion, read_mask
from rootsam_lib.data.scans import Scan, describe_groups, grouped_split, leak_report, parse_date, parse_tube
from rootsam_lib.results import progress, shown

SPLITS = ("train", "valid", "test", "all")
FOLDER_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"}
# Images, too, but not read:
_OTHER_SUFFIXES = {".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".pgm", ".ppm", ".psd", ".svg", ".pdf", ".npy"}
_OTHER_SUFFIXES |= {".pnm", ".pbm", ".tga", ".j2k", ".jpx", ".apng", ".dib", ".mpo", ".btf", ".pcx", ".dcm"}
_OTHER_SUFFIXES |= {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raw", ".czi", ".nd2", ".lif", ".svs"}
IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_MASK_FOLDERS = {"masks", "mask", "masks_pixel_gt", "gt", "groundtruth", "ground_truth", "annotations", "labels"}
_PART_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_PART_FOLDERS |= {f"{name}{end}": part for name, part in _PART_FOLDERS.items() for end in ("_set", "ing", "_data")}
_MASK_NAME = re.compile(
    r"^(?:gt_|mask_)(.+)$|^(.+)[-_ .](?:masks?|gt|labels?|seg|segmentations?|annotations?)$", re.IGNORECASE
)
_LIKE_MASK = re.compile(
    r"(?:^|[-_ .(\d])(?:masks?|gt|labels?|seg|segmentations?|annotations?)(?=[-_ .)\d]|$)|masks?$", re.IGNORECASE
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
    check_split(split, limit, seed)
    if mask_coding is not None:
        checked_coding(mask_coding)
    root = named_folder(data_dir)
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
    return load_entries(spread(entries, limit), f"{root.name} {split}", **how)


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
    sources: Counter[str] = Counter()
    found: set[float | None] = set()
    if dpi is not None:
        checked_dpi(dpi)
    for entry in entries:
        try:
            number, source = resolution(entry.image)
        except ValueError:
            if strict and dpi is None:
                raise
            number, source = None, "a name that cannot be"
        if dpi is None or (number and abs(number / dpi - 1) > 0.01):
            sources[source] += 1
            found.add(number)
    if dpi is not None:
        against = (
            f", against {sources.most_common(1)[0][0]} ({sources.total()} of the images say otherwise)"
            if sources
            else ""
        )
        return f"resolution: {dpi:g} dpi as given{against}"
    said = "; ".join(f"{source} ({count} image{'s' * (count > 1)})" for source, count in sources.most_common())
    none = " (give dpi, --dpi on the command line, for millimetres: without it lengths are in pixels)"
    several = " (a model sees all of a folder at one scale: give each resolution a folder of its own)"
    return f"resolution: {said}{none if None in found else ''}{several if len(found - {None}) > 1 else ''}"


def named_folder(path: str | Path) -> Path:
    """A folder's path, ~ as the home. Raises ValueError for "", which would be the current one, and for no path."""
    if path == "":
        raise ValueError("the folder's name is empty: give one, or '.' for the current one.")
    if not isinstance(path, (str, Path)):
        raise ValueError(f"folder is {path!r:.80}: give the path of a folder of images.")
    return Path(path).expanduser()


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
        what = f"files of a kind that is not read: {len(unread)} (first: {shown(unread[0])})"
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
    name = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace").replace("\\x", "%"))
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
    return (*kept, unicodedata.normalize("NFC", stem.lower())), in_masks or affix is not None


def load_entries(entries: Sequence[Entry], what: str, **how: object) -> list[Scan]:
    """Read these scans, showing progress; how: see `load_entry`."""
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
    parts = image[::5, ::5], image  # of nearly every photograph the first says it
    drawn_like_a_mask = all(len(np.unique(part.reshape(-1, 3), axis=0)) == 2 for part in parts)
    if entry.mask is not None:
        drawn = open_image(entry.mask, max_megapixels)
        mask = read_mask(drawn, mask_coding, max_megapixels)
        _check_fit(image, mask, opened.info["orientation"], drawn.info["orientation"], entry)
        if drawn_like_a_mask and np.array_equal(image[..., 0] > 127, mask):
            raise ValueError(f"{shown(entry.image)} holds what its mask holds: put the photograph in its place.")
    if drawn_like_a_mask:
        what = f"call it X-mask, where X is its image ({_SCHEMES})"
        warnings.warn(f"{shown(entry.image)} holds two colours only: if it is a mask, {what}.", stacklevel=2)
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


def spread(items: list[_T], limit: int | None) -> list[_T]:
    """At most `limit` items, spread evenly over the list: neighbours in a sorted list are scans of one tube."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def check_split(split: str, limit: int | None, seed: int = 0) -> None:
    """Raises ValueError, with what to give instead, for what is no split, limit or seed."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    if limit is not None:
        checked("limit", limit, 1, whole=True)
    checked("seed", seed, 0, whole=True)


class ImageFiles(Sequence):
    """Image files as scans without masks, each read when it is asked for: for sessions larger than memory.

    paths: the files, or a folder, of which all images are taken and no masks. Raises what `find_pairs` raises.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]):
        if isinstance(paths, (str, Path)):
            entries = find_pairs(named_folder(paths), need_masks=False)
        else:
            named = [(Path(path), Path(path).stem) for path in paths]
            entries = [Entry(path, None, name, parse_tube(name) or name, None) for path, name in named]
        self.entries = [entry._replace(mask=None) for entry in entries]
        self.names = [entry.name for entry in entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int | slice) -> Scan | list[Scan]:
        if isinstance(index, slice):
            return [load_entry(entry) for entry in self.entries[index]]
        return load_entry(self.entries[index])
