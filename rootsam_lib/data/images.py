"""What an image file says: its pixels as 8-bit RGB, how it is turned, and its resolution.

Nothing is guessed in silence: a range of values that was scaled gives a warning, `resolution` returns a sentence with
its number, and what cannot be known is refused with what to do next.
"""

import contextlib
import math
import numbers
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps

from rootsam_lib import checked
from rootsam_lib.results import shown

MAX_MEGAPIXELS = 250.0  # RGB, scores and mask of such a scan take about 3 GB of memory
DPI_RANGE = (50.0, 10_000.0)  # what scanners and cameras over roots have
UNASKED_DPI = (72, 96, 100, 144)  # what software writes unasked: SegRoot's scans at 300 dpi say 100
BITS = (8, 10, 12, 14, 16, 24, 31)
# What is read, whatever the file's ending says. Pillow knows more, and would run a program (Ghostscript) on PostScript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# TIFF and EXIF tags
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, CHANNELS, RESOLUTION_UNIT = 0x0102, 0x0106, 0x0112, 0x0115, 0x0128
SAMPLE_FORMAT, SIGNED = 0x0153, 2
EXPOSURE_IFD, EXPOSURE_TIME = 0x8769, 0x829A  # a camera's: its dots per inch are of nothing
PLANES, APART = 0x011C, 2
_NAMED_DPI = re.compile(r"(?<!\d)(?<!\d[.,])(\d+)dpi(?![a-z])|(?<![a-z])dpi(\d+)(?![.,]?\d)", re.IGNORECASE)

# Pillow's own limit cannot be raised for one file, and says that a large scan is an attack: `open_image` has its own.
Image.MAX_IMAGE_PIXELS = None


@contextlib.contextmanager
def header(path: str | Path) -> Iterator[Image.Image]:
    """A PIL image whose pixels are not decoded yet; its size and metadata can be read.

    Raises FileNotFoundError, or ValueError for what is no regular file (a named pipe would wait for ever) or no image.
    """
    path = Path(path)
    with contextlib.ExitStack() as held:
        try:
            if path.exists() and not path.is_file():
                what = "no regular file (a folder, pipe or device): put an image file in its place."
                raise ValueError(f"{shown(path)} is {what}")
            file = held.enter_context(open(path, "rb"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{shown(path)} does not exist: check its name.") from None
        except PermissionError:
            may_not = f"{shown(path)} may not be read: give yourself the right to, or take it out."
            raise PermissionError(may_not) from None
        except OSError as error:  # such as a name that is too long
            raise _unreadable(path, error) from None
        yield held.enter_context(_opened(file, path))


def _opened(file: BinaryIO, path: Path) -> Image.Image:
    try:  # not by the file's name: Pillow would map the pixels of some turned TIFFs, and wrongly
        return Image.open(file, formats=FORMATS)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything at damaged files
        raise _unreadable(path, error) from None


def open_image(path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A decoded PIL image; its metadata stays readable, info["orientation"] (1 to 8, as EXIF counts) among them.

    Raises what `header` raises, and ValueError, in one sentence, for an image of more than max_megapixels (million
    pixels), a file of several pages, and one that cannot be decoded.
    """
    checked("max_megapixels", max_megapixels, 0, above=True)
    path = Path(path)
    with header(path) as opened:
        megapixels = opened.width * opened.height / 1e6
        if megapixels > max_megapixels:
            raise ValueError(
                f"{shown(path)} has {megapixels:.1f} megapixels, and max_megapixels is {max_megapixels:g}: raise it "
                f"(--max-megapixels) if {megapixels * 0.012:.1f} GB of memory are free, or cut the scan into pieces."
            )
        try:
            pages = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)  # MPO: a phone's second view
            tags = opened.tag_v2 if opened.format == "TIFF" else {}
            bits = tags.get(BITS_PER_SAMPLE, 8)
            # Colours of 16 bits, which Pillow cuts to 8.
            deep = opened.mode in ("RGB", "RGBA", "LA") and (";16" in str(opened.tile) or np.max(bits) > 8)
            if deep and tags.get(PLANES) == APART:  # OpenCV misreads it
                raise ValueError("colours of 16 bits, each stored by itself")
            if bits != 8 and opened.mode[0] in "IF" and tags.get(PHOTOMETRIC) == 0:  # Pillow would invert 8 bits
                raise ValueError("more than 8 bits, and 0 is white")
            if opened.mode == "L" and np.any(np.equal(tags.get(SAMPLE_FORMAT), SIGNED)):
                raise ValueError("signed values of 8 bits, which would be read as unsigned")
            if opened.format == "PNG":  # reading its EXIF would load the pixels, and swallow what is wrong with them
                opened.load()
            turned = _orientation(opened)
            if turned != 1 and (deep or opened.mode[0] in "IF"):
                raise ValueError(f"more than 8 bits and EXIF orientation {turned} at once: turn it upright")
            opened.load()
            if turned != 1:
                ImageOps.exif_transpose(opened, in_place=True)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything at damaged files
            raise _unreadable(path, error) from None
        if pages > 1:
            raise ValueError(
                f"{shown(path)} holds {pages} pages or frames: save the one that is meant as a file of its own."
            )
        channels = tags.get(CHANNELS, 1)
        if channels > (read := len(opened.getbands())):
            what = f"{channels} channels, of which only the first {f'{read} are' if read > 1 else 'is'} read"
            warnings.warn(f"{shown(path)} holds {what}: if another is meant, save that alone.", stacklevel=2)
        opened.info |= {"deep": deep, "orientation": turned}
        opened.filename = str(path)
        return opened


def open_once(source: str | Path | Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A path, opened, or what `open_image` gave. Raises what that raises, and ValueError for another PIL image."""
    if not isinstance(source, Image.Image):
        return open_image(source, max_megapixels)
    if "deep" not in source.info:
        raise ValueError("a PIL image no longer says how its file stores it: give the file's path instead.")
    return source


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none: damaged metadata fail in many ways, and are as good as none."""
    try:
        return int(opened.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _unreadable(path: Path, error: Exception) -> ValueError:
    start = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(64)
        if not start:
            return ValueError(f"{shown(path)} is empty (0 bytes): copy it again, or take it out.")
    if start.startswith(b"version https://git-lfs"):
        return ValueError(f"{shown(path)} only stands for an image that Git LFS holds: get it by `git lfs pull`.")
    reason = re.sub(r"<_io.*>", lambda _: repr(path.name), str(error)).replace(str(path), path.name).strip(".")
    reason = reason or type(error).__name__
    reason = reason.encode("utf-8", "replace").decode()
    return ValueError(
        f"{shown(path)} cannot be read as an image ({reason}): it is damaged or of a kind that is not read; copy it "
        "again, or save it as PNG."
    )


def read_image(source: str | Path | Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """An image file (or what `open_image` gave) as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Grey and palette images become RGB; alpha is dropped, with a warning where it hides something. Values of more than 8
    bits are scaled by the range that the file uses (10-bit values in a 16-bit file by 1023), floating-point ones by 1
    or, above that, as integers; a warning says so. Raises what `open_image` raises, and ValueError for values
    that are negative or no number.
    """
    opened = open_once(source, max_megapixels)
    path = Path(opened.filename)
    if opened.mode[0] in "IF":
        kind = "floating-point" if opened.mode == "F" else "16-bit" if ";16" in opened.mode else "32-bit"
        return np.repeat(_to_8_bits(np.asarray(opened), kind, path)[..., None], 3, axis=2)
    try:
        if opened.has_transparency_data and opened.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            warnings.warn(f"{shown(path)} is transparent in parts: what is stored there counts as seen.", stacklevel=2)
        if opened.info["deep"]:
            return _to_8_bits(deep_colours(path), "16-bit", path)
        pixels = np.array(opened.convert("RGB"))
    except ValueError as error:
        raise _unreadable(path, error) from None
    # What decoders make of a file that ends too soon, or whose rest is zeros, without a word.
    even = (pixels == pixels[-1, 0]).all(axis=(1, 2))[::-1]
    rest = int(np.argmin(even)) if not even.all() else 0
    if rest > len(pixels) / 8:
        what = f"the lowest {rest} of {len(pixels)} rows are of one colour"
        warnings.warn(f"{shown(path)}: {what}: the file may be damaged, copy it again or cut them off.", stacklevel=2)
    return pixels


def deep_colours(path: Path) -> np.ndarray:
    """The pixels of a file with colours of 16 bits, uint16 (H, W, 3): Pillow would drop the lower half."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None or pixels.ndim != 3:
        raise ValueError(f"{shown(path)} has colours of 16 bits that cannot be decoded: save it with 8 bits.")
    return pixels[..., ::-1]


def _to_8_bits(values: np.ndarray, kind: str, path: Path) -> np.ndarray:
    """Values of any range as uint8, scaled by the smallest usual range that holds them."""
    low, top = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(top)):
        raise ValueError(f"{shown(path)} holds pixels that are no number (NaN or infinite): save it as 8-bit PNG.")
    if low < 0 or top >= 2 ** BITS[-1]:
        raise ValueError(f"{shown(path)} holds values from {low:g} to {top:g}: scale them to 0 to 255 and save again.")
    if values.dtype.kind == "f" and top < 2:
        if (values > 1.05).mean() > 0.001:  # a few may be: resampling overshoots
            raise ValueError(
                f"{shown(path)} holds values from {low:g} to {top:g}: scale them to 0 to 1 and save again."
            )
        full, said = 1, "values from 0 to 1"
    else:
        bits = next(bits for bits in BITS if top < 2**bits)
        full, said = 2**bits - 1, f"{bits}-bit values"
    usual = float(np.quantile(values, 0.999))
    if 0 < usual < top / 8:
        warnings.warn(
            f"{shown(path)}: hardly a pixel is above {usual:g}, but the brightest is {top:g}, so the image becomes "
            "very dark: where that is a dead pixel or a scale bar, take it out and save again.",
            stacklevel=3,
        )
    if full != 65535:
        warnings.warn(
            f"{shown(path)} ({kind}) holds {said}: scaled so that {full} becomes 255, whatever others hold.",
            stacklevel=3,
        )
    return np.clip(values * np.float32(255 / full) + np.float32(0.5), 0, 255).astype(np.uint8)


# --- resolution


def resolution(path: str | Path) -> tuple[float | None, str]:
    """An image's dots per inch, or None, and where they are from, for people to read.

    First what a name says: `DPI120` or `300dpi`, a number directly bound to "dpi", in the file's name or else in one of
    the three folders above. Else the file's metadata (what Pillow knows of; inch or cm), where they can be believed:
    equal both ways, within `DPI_RANGE`, not 72, 96, 100 or 144, and not a camera's. Raises ValueError for a name that
    says two resolutions or one that no scanner has.
    """
    path = Path(path).absolute()  # "." has a name, too
    (named, place), (stated, doubt) = _named_dpi(path), _stated_dpi(path)
    if named:
        conflict = f", against {stated:g} in the metadata" if stated and abs(named / stated - 1) > 0.01 else doubt
        return named, f"{named:g} dpi from the {place}{conflict}"
    return stated, f"{stated:g} dpi from the metadata" if stated else f"no resolution{doubt}"


def _named_dpi(path: Path) -> tuple[float | None, str]:
    """What a file's name says, or the nearest folder's, and which of both."""
    for place, name in (("name", path.stem), *(("folder's name", folder.name) for folder in list(path.parents)[:3])):
        found = {int(before or after) for before, after in _NAMED_DPI.findall(name)}
        if len(found) > 1:
            listed = " and ".join(str(number) for number in sorted(found))
            raise ValueError(f"{shown(path)} is named {listed} dpi: give dpi (--dpi), or rename it.")
        if found:
            return checked_dpi(found.pop(), f"{shown(path)}: the resolution in its {place}"), place
    return None, ""


def _stated_dpi(path: Path) -> tuple[float | None, str]:
    """What a file's metadata say, where that can be believed, and a doubt; files that cannot be read fail elsewhere."""
    try:
        with header(path) as opened:
            exif = opened.getexif() if opened.format in ("JPEG", "MPO") else {}
            if exif and (exif.get(RESOLUTION_UNIT) == 1 or EXPOSURE_TIME in exif.get_ifd(EXPOSURE_IFD)):
                return None, ""  # no unit: a mere aspect ratio
            x, y = (float(number) for number in opened.info["dpi"])
            whole = round(x, 1)  # PNG rounds to dots per metre: 299.9994
    except Exception:  # as in `_orientation`; none, or a rational such as 0/0
        return None, ""
    low, high = DPI_RANGE
    if not (low <= x <= high and low <= y <= high) or whole in UNASKED_DPI:
        return None, ""
    if abs(x - y) >= 0.01 * x:
        return None, f" (metadata say {x:g} x {y:g} dpi: pixels that are no squares are measured as if they were)"
    return whole, ""


def checked_dpi(dpi: float, name: str = "dpi") -> float:
    """A resolution in dots per inch, if it can be one.

    Raises ValueError, with the likely cause, for one outside `DPI_RANGE`.
    """
    low, high = DPI_RANGE
    try:
        return float(checked(name, dpi, low, high))
    except ValueError as error:
        if isinstance(dpi, bool) or not isinstance(dpi, numbers.Real) or not dpi or not math.isfinite(dpi):
            raise
        causes = {"the edge of a pixel in mm": 25.4 / dpi, "the edge of a pixel in µm": 25_400 / dpi}
        causes |= {"pixels per mm": dpi * 25.4, "pixels per metre": dpi * 0.0254}
        hints = [
            f" If it is {unit}, that is {meant:.0f} dpi." for unit, meant in causes.items() if low <= meant <= high
        ]
        raise ValueError(f"{error}{''.join(hints)}") from None
