"""Minirhizotron scans drawn from a seed, with exact masks: the data that needs no download.

The look is that of a CID CI-600 scan of soybean at 300 dpi (the SegRoot images, Wang et al. 2019,
doi 10.1016/j.compag.2019.05.017): brown soil of fine grains, white specks and reddish stones, coarse and wet towards
the ends of the sheet, fog and drops, black tape whose edge leaks light, and faint branching roots, in places covered.
Bright specks, fibres, scratches and straw are *not* roots, so that brightness alone does not find roots.

What the mask holds: every pixel more than half covered by a root, **through** the short gaps where soil covers it,
because annotators trace through them; but not under tape or opaque fog, where nothing can be seen.
"""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from rootsam_lib import checked
from rootsam_lib.data.scans import Scan

DPI = 300
SHEET = (2273, 2550)  # a whole CI-600 scan at 300 dpi; a smaller scan is a window on such a sheet
SPLITS = ("train", "valid", "test")
STEP = 3.0  # pixels between two points of a root's path
TAPE_TINTS = np.array([[9, 21, 23], [11, 24, 24], [5, 9, 18], [7, 14, 22], [3, 5, 11]], np.float32)


class Look(NamedTuple):
    """What differs from scan to scan."""

    soil: np.ndarray  # RGB of the matrix: brown, grey or dark
    stone_red: float  # how red the stones are, 0..1
    speckle: float  # density of grains and stones, 1 = as in the average scan
    wet: float  # darkening and blur towards the ends of the sheet, 0..1
    root_contrast: float  # grey levels above the soil around
    root_white: float  # 0 old and tan .. 1 young and white
    wiggle: float  # how much roots bend
    cover: float  # grows with the share of root length that soil covers


class Stroke(NamedTuple):
    """One root, fibre, scratch or straw."""

    points: np.ndarray  # (N, 2) as (x, y) px
    widths: np.ndarray  # (N,) px
    tone: float  # grey levels above the soil around
    white: float  # 0 tan .. 1 white


class Scene(NamedTuple):
    """What the scanner looks at: all but the water's drops and its own noise, which are new in every scan."""

    look: Look
    ends: np.ndarray  # closeness to the ends of the sheet (H, W)
    tape: tuple[np.ndarray, np.ndarray, np.ndarray]  # RGB, opacity, and the light left beside it
    fog: np.ndarray  # opacity (H, W)
    hidden: np.ndarray  # bool (H, W): under tape or opaque fog
    distractors: list[Stroke]
    roots: list[Stroke]
    soil: np.ndarray  # RGB with stones (H, W, 3)
    opacity: np.ndarray  # how much of a root shows (H, W)


def synthetic_scans(split: str, count: int, seed: int = 0, height: int = 1024, width: int = 1024) -> list[Scan]:
    """Draw `count` scans of a split: "train", "valid" or "test".

    Scan i depends on (seed, split, i) only, not on `count`. Two scans share a tube; no tube is in two splits.
    Raises ValueError for an unknown split or a negative count or seed.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not a split of synthetic scans: choose one of {', '.join(SPLITS)}.")
    checked("count", count, 0, whole=True)
    checked("seed", seed, 0, whole=True)
    number, scans = SPLITS.index(split), []
    for i in range(count):
        rng = np.random.default_rng(np.random.SeedSequence([seed, number, i]))
        tube = f"T{i // 2 * len(SPLITS) + number:03d}"
        date = f"2017-{4 + i % 5:02d}-{11 + i % 17:02d}"
        name = f"synthetic_{tube}_L{i % 2 + 1:03d}_{date}_{split}{i:03d}_seed{seed}"
        scans.append(draw_scan(rng, height, width, name=name, tube=tube, date=date))
    return scans


def draw_scan(
    rng: np.random.Generator,
    height: int = 1024,
    width: int = 1024,
    name: str = "synthetic",
    tube: str = "T000",
    date: str = "",
    thickness: float = 1.0,
) -> Scan:
    """Draw one scan: image (height, width, 3) uint8 RGB, mask (height, width) bool, 300 dpi.

    thickness: how many times as wide as in a CI-600 scan of soybean the roots are, in soil that stays as it is. The
    same state of `rng` gives the same bits. Raises ValueError if a side is shorter than 64 px.
    """
    for side, pixels in (("height", height), ("width", width)):
        checked(side, pixels, 64, whole=True)
    checked("thickness", thickness, 0, 100, above=True)
    scene = scene_of(rng, height, width)
    roots = [stroke._replace(widths=stroke.widths * thickness) for stroke in scene.roots]
    image, mask = scanned(rng, scene, roots)
    return Scan(image=image, mask=mask, name=name, tube=tube, date=date, mm_per_px=25.4 / DPI)


def scene_of(rng: np.random.Generator, height: int, width: int) -> Scene:
    """What a scan shows, drawn in layers."""
    look = _look(rng)
    ends, left, right = _window(rng, height, width)
    tape = _tape(rng, left, right, width)
    fog = _fog(rng, ends, look)
    hidden = (tape[1] > 0.5) | (fog > 0.5)
    distractors, roots = _distractors(rng, height, width), _roots(rng, hidden, look)
    soil = _stones(rng, _soil(rng, ends, look), ends, look)
    return Scene(look, ends, tape, fog, hidden, distractors, roots, soil, _opacity(rng, height, width, look))


def scanned(rng: np.random.Generator, scene: Scene, roots: list[Stroke]) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a scene with these roots."""
    height, width = scene.fog.shape
    image = _paint(scene.soil, _rasterise(scene.distractors + roots, height, width), scene.opacity)
    image = _water(rng, image, scene.ends, scene.fog, scene.look)
    tape, tape_alpha, shade = scene.tape
    image = _scanner(rng, _blend(image * shade[..., None], tape, tape_alpha))
    return image, (_rasterise(roots, height, width)[0] > 0.5) & ~scene.hidden


def _look(rng: np.random.Generator) -> Look:
    """Draw a scan's character, wider than the real scans vary, so that no one soil is learnt by heart."""
    warm = rng.uniform(0.35, 1.1)
    soil = rng.uniform(46, 66) * np.array([1 + 0.15 * warm, 1 - 0.03 * warm, 1 - 0.09 * warm])
    low, high = zip((0.4, 1), (0.6, 1.5), (0.1, 0.6), (56, 100), (0, 1), (0.7, 1.6), (0.06, 0.2), strict=True)
    return Look(soil.astype(np.float32), *rng.uniform(low, high))


def _noise(rng: np.random.Generator, height: int, width: int, sigma: float, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise (height, width) of unit spread; wide kernels are drawn small and enlarged, which is much faster."""
    shrink = max(1.0, sigma / 2)
    rows, columns = int(np.ceil(height / shrink)) + 4, int(np.ceil(width / shrink)) + 4
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    small = sigma / shrink
    field = cv2.GaussianBlur(field, (0, 0), sigmaX=small * stretch, sigmaY=small)
    field *= np.float32(2 * small * np.sqrt(np.pi * stretch))  # a blurred white field keeps 1 / (2 σ √π) of its spread
    if shrink > 1:
        field = cv2.resize(field, (int(columns * shrink), int(rows * shrink)), interpolation=cv2.INTER_CUBIC)
    return field[:height, :width]


def _wander(rng: np.random.Generator, n: int, sigma: float) -> np.ndarray:
    """Smooth noise (n,) of unit spread, for edges and paths."""
    pad = int(3 * sigma)
    smooth = gaussian_filter1d(rng.standard_normal(n + 2 * pad), sigma)[pad : pad + n]
    return (smooth * np.sqrt(2 * sigma * np.sqrt(np.pi))).astype(np.float32)


def _ramp(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _blend(image: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay `over` (H, W, 3) on `image` with `alpha` (H, W)."""
    return image + alpha[..., None] * (over - image)


def _window(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place the scan on a sheet, as a crop would be: closeness to its ends (H, W), x of the soil's two edges (H,)."""
    rows, columns = max(height, SHEET[0]), max(width, SHEET[1])
    start, stop = columns * rng.uniform(0.13, 0.22), columns * rng.uniform(0.80, 0.89)
    y0 = rng.uniform(0, rows - height)
    x0 = np.clip(rng.uniform(start - 0.4 * width, stop - 0.6 * width), 0, columns - width)
    depth = (np.arange(height, dtype=np.float32)[:, None] + y0) / rows
    ends = _ramp((0.3 - np.minimum(depth, 1 - depth)) / 0.22 + 0.15 * _noise(rng, height, width, 60))
    lean = np.linspace(-0.015, 0.015, height, dtype=np.float32) * height
    curve = [rng.uniform(-1, 1) * lean + 7 * _wander(rng, height, 150) + 1.5 * _wander(rng, height, 20) for _ in "lr"]
    return ends, (curve[0] + (start - x0)).astype(np.float32), (curve[1] + (stop - x0)).astype(np.float32)


def _soil(rng: np.random.Generator, ends: np.ndarray, look: Look) -> np.ndarray:
    """The matrix: grains of every size, a little wider than tall, with the band energies measured on real scans."""
    height, width = ends.shape
    grain = -0.1 * ends
    for sigma, spread in ((0.8, 0.16), (1.6, 0.09), (3.2, 0.06), (7.0, 0.05), (18.0, 0.03), (70.0, 0.06)):
        grain += spread * _noise(rng, height, width, sigma, stretch=1.5)
    redness = 0.025 * _noise(rng, height, width, 4.0) + 0.012 * _noise(rng, height, width, 30.0)
    light = np.exp(grain)
    specks = 130 * _ramp((_noise(rng, height, width, 1.0, stretch=1.4) - 2.3 + 0.3 * look.speckle) / 1.3)
    return cv2.merge([light * (1 + k * redness) * c + specks for k, c in zip((1, 0, -1), look.soil, strict=True)])


def _stones(rng: np.random.Generator, image: np.ndarray, ends: np.ndarray, look: Look) -> np.ndarray:
    """Stones, aggregates, pores and white grains as ragged polygons; more and larger at the wet ends of the sheet."""
    height, width = ends.shape
    where = rng.uniform(0, 1, (int(height * width * 0.016 * look.speckle), 2)) * (width, height)
    where = where[rng.random(len(where)) < 0.3 + 0.7 * ends[where[:, 1].astype(int), where[:, 0].astype(int)]]
    coarse, count = ends[where[:, 1].astype(int), where[:, 0].astype(int)], len(where)
    kind = rng.choice(4, count, p=(0.34, 0.34, 0.24, 0.08))  # white grain, red stone, aggregate, pore
    radius = np.array([0.8, 1.4, 1.4, 1.3])[kind] * (1 + rng.pareto(2.3, count)) * (1 + 2.2 * coarse**2 * (kind > 0))
    reach = np.minimum(radius, np.array([7, 22, 18, 6])[kind])[:, None] * rng.uniform(0.45, 1.25, (count, 9))
    angle = np.linspace(0, 2 * np.pi, 9, endpoint=False) + rng.uniform(0, 0.6, (count, 9))
    shape = np.stack([1.25 * reach * np.cos(angle), 0.85 * reach * np.sin(angle)], axis=-1) + where[:, None]
    red = np.array([1.9, 1.13, 1.0]) * look.stone_red + np.array([1.5, 1.3, 1.2]) * (1 - look.stone_red)
    base = np.array([[200, 190, 174], red * look.soil.mean(), look.soil * 1.2, look.soil * 0.5])
    colour = base[kind] * rng.uniform(0.7, 1.3, (count, 1)) + rng.normal(0, 4, (count, 1)) * (1, 0, -1)
    colour += np.where(kind == 0, 0.4, 0.65)[:, None] * rng.random((count, 1)) ** 1.3 * (look.soil - colour)  # dust
    canvas = np.clip(image, 0, 255).astype(np.uint8)
    for polygon, rgb in zip(np.round(shape * 16).astype(np.int32), np.clip(colour, 0, 255).tolist(), strict=True):
        cv2.fillPoly(canvas, [polygon], rgb, lineType=cv2.LINE_AA, shift=4)
    bumps = 1 + 0.07 * _noise(rng, height, width, 0.9) + 0.08 * _noise(rng, height, width, 2.5)
    return cv2.GaussianBlur(0.8 * bumps[..., None] * canvas + 0.2 * image, (0, 0), 0.5)


def _root_path(rng: np.random.Generator, start: np.ndarray, heading: float, length: float, wiggle: float) -> tuple:
    """A correlated random walk, points (N, 2) and headings (N,): smooth bends, kinks where a stone is in the way."""
    n = max(4, int(length / STEP))
    bend = wiggle * (0.34 * _wander(rng, n, 22) + 0.12 * _wander(rng, n, 5))
    drift = rng.normal(0, 0.005 * wiggle) * np.arange(n) + np.cumsum(rng.normal(0, 0.35, n) * (rng.random(n) < 0.015))
    headings = heading + bend + drift
    return start + np.cumsum(STEP * np.stack([np.cos(headings), np.sin(headings)], axis=-1), axis=0), headings


def _root_system(rng: np.random.Generator, start: np.ndarray, look: Look) -> list[Stroke]:
    """One root with its laterals, and theirs: thinner, shorter and fainter with each order."""
    strokes, todo = [], [(start, rng.uniform(0, 2 * np.pi), rng.uniform(90, 800), rng.lognormal(1.5, 0.4), 0)]
    while todo:
        at, heading, length, thick, order = todo.pop(0)
        points, headings = _root_path(rng, at, heading, length, look.wiggle)
        n, side = len(points), rng.choice((-1, 1))
        widths = np.clip(thick * np.linspace(1, 0.45, n) * (1 + 0.1 * _wander(rng, n, 6)), 1.6, 11.9)
        tone = max(14, look.root_contrast * rng.uniform(0.6, 1.3) * 0.85**order)
        strokes.append(Stroke(points, widths, tone, float(np.clip(look.root_white + rng.normal(0, 0.2), 0, 1))))
        for k in np.flatnonzero(rng.random(n) < (0.04, 0.025, 0)[order]):
            side, thin, turn = -side, widths[k] * rng.uniform(0.4, 0.7), rng.uniform(0.5, 1.4)
            todo.append((points[k], headings[k] + side * turn, length * rng.uniform(0.1, 0.45), thin, order + 1))
    return strokes


def _roots(rng: np.random.Generator, hidden: np.ndarray, look: Look) -> list[Stroke]:
    """Root systems around few centres (so that many patches hold soil only) until the share of root pixels is reached.

    The share is log-normal about 1.4 %, within 0.12 to 3.3 % as in the SegRoot scans; one scan in six is nearly empty.
    """
    height, width = hidden.shape
    share = rng.uniform(0.0012, 0.0025) if rng.random() < 1 / 6 else np.clip(rng.lognormal(-4.3, 0.5), 0.0025, 0.033)
    centres = rng.uniform(0, 1, (1 + int(share * 300), 2)) * (width, height)
    room, strokes = share * hidden.size, []
    for _ in range(1000):  # an end even where almost all is hidden
        start = centres[rng.integers(len(centres))] + rng.normal(0, 0.12 * min(height, width), 2)
        for stroke in _root_system(rng, start, look):
            x, y = np.round(stroke.points).astype(int).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            seen = inside & ~hidden[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
            area = np.cumsum(seen * stroke.widths * STEP)
            keep = max(2, int(np.searchsorted(area, room)))  # cut the root that would overdraw
            strokes.append(stroke._replace(points=stroke.points[:keep], widths=stroke.widths[:keep]))
            room -= area[-1]
            if room <= 0:
                return strokes
    return strokes


def _distractors(rng: np.random.Generator, height: int, width: int) -> list[Stroke]:
    """What is long and pale but no root: thin stiff fibres, hair-thin scratches along the tube, short thick straw."""
    strokes = []
    for often, turn, (short, long), wiggle, (thin, thick), (dull, bright), white in (
        (9, np.pi, (15, 70), 0.1, (1.0, 1.6), (20, 60), 0.9),
        (2, 0.03, (80, 500), 0.01, (0.8, 1.0), (10, 24), 1.0),
        (8, np.pi, (12, 40), 0.3, (3.0, 8.0), (-18, 28), 0.0),
    ):
        for _ in range(rng.poisson(often * height * width / 2**20)):
            start, heading = rng.uniform(0, 1, 2) * (width, height), np.pi / 2 + rng.uniform(-turn, turn)
            points, _ = _root_path(rng, start, heading, rng.uniform(short, long), wiggle)
            widths, tone = np.full(len(points), rng.uniform(thin, thick)), rng.uniform(dull, bright)
            strokes.append(Stroke(points, widths, tone, white))
    return strokes


def _rasterise(strokes: list[Stroke], height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage, tone and whiteness (H, W) of strokes: drawn at twice the size, averaged, for soft half-pixel edges."""
    canvas = np.zeros((2 * height, 2 * width, 3), np.uint8)
    for stroke in strokes:
        at = np.round((2 * stroke.points + 0.5) * 16).astype(int).tolist()
        thick = np.maximum(1, 2 * stroke.widths.astype(int)).tolist()  # cv2 draws thickness 2k as 2k + 1 pixels
        colour = (255, float(np.clip(128 + stroke.tone, 1, 255)), 255 * stroke.white)
        for a, b, t in zip(at[:-1], at[1:], thick[1:], strict=True):
            cv2.line(canvas, a, b, colour, t, cv2.LINE_8, shift=4)
    cover, tone, white = cv2.split(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32))
    return cover / 255, np.where(cover > 0, tone / np.maximum(cover, 1) * 255 - 128, 0), white / np.maximum(cover, 1)


def _opacity(rng: np.random.Generator, height: int, width: int, look: Look) -> np.ndarray:
    """How much of a stroke shows (H, W): it fades along its way, and clods of soil cover it for some 5 to 25 px."""
    fade = np.clip(0.76 + 0.18 * _noise(rng, height, width, 35), 0.35, 0.95)
    clods = _noise(rng, height, width, 4.5) + 0.35 * _noise(rng, height, width, 1.2)
    return fade * (1 - 0.9 * _ramp((clods - 1.7 + 4.5 * look.cover) / 0.5))


def _paint(image: np.ndarray, layers: tuple, opacity: np.ndarray) -> np.ndarray:
    """Lay strokes on the soil: smoother than soil, a little lighter, lit from above, with a faint shadow around."""
    cover, tone, white = layers
    near, soft, spread = (cv2.GaussianBlur(cover, (0, 0), s) for s in (2.2, 0.65, 1.3))
    tone, white = (cv2.GaussianBlur(a * cover, (0, 0), 1.3) / np.maximum(spread, 1e-3) for a in (tone, white))
    grey = image @ np.full(3, 1 / 3, np.float32)
    small = cv2.resize(np.minimum(grey, 110), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    ground = cv2.resize(cv2.GaussianBlur(small, (0, 0), 3), grey.shape[::-1])
    light = (ground + tone + 14 * cv2.Sobel(near, cv2.CV_32F, 0, 1, ksize=3)) * (0.88 + 0.16 * near)
    texture = 0.25 * (grey - ground)
    tint = ((1.14, -0.08), (0.98, 0.01), (0.82, 0.16))
    over = cv2.merge([light * (a + b * white) + texture for a, b in tint])
    return _blend(image * (1 - 0.3 * np.clip(near - soft, 0, 1) * opacity)[..., None], over, soft * opacity)


def _fog(rng: np.random.Generator, ends: np.ndarray, look: Look) -> np.ndarray:
    """Opacity (H, W) of water condensed on the tube wall: ragged patches at the ends of the sheet in half the scans."""
    if rng.random() < 0.5:
        return np.zeros_like(ends)
    patch = 0.15 * _noise(rng, *ends.shape, 45) + 0.1 * _noise(rng, *ends.shape, 6)
    return 0.85 * _ramp((ends + patch + 0.3 * look.wet - 0.95) / 0.35)


def _water(rng: np.random.Generator, image: np.ndarray, ends: np.ndarray, fog: np.ndarray, look: Look) -> np.ndarray:
    """Wet soil: darker, blurred, colder. Then fog of glittering droplets, and dark drops with a bright arc of light."""
    if ends.any():
        image = _blend(image, cv2.GaussianBlur(image, (0, 0), 2.2), look.wet * ends)
        image = image * (1 - look.wet * ends[..., None] * np.array([0.3, 0.25, 0.23], np.float32))
    y, x = np.nonzero(fog > 0.4)
    if not len(y):
        return image
    light = 72 + 16 * _noise(rng, *fog.shape, 0.9) + 7 * _noise(rng, *fog.shape, 8)
    glitter = cv2.merge([light + cast + 7 * _noise(rng, *fog.shape, 0.8) for cast in (-3, 0, 3)])
    image = np.clip(_blend(image, glitter, fog), 0, 255).astype(np.uint8)
    for k in rng.integers(0, len(y), int(len(y) * rng.choice((0.0003, 0.004)))):
        r, at = int(min(2 + rng.pareto(2.2) * 1.6, 20)), (int(x[k]), int(y[k]))
        cv2.circle(image, at, r, (32, 28, 27), -1, cv2.LINE_AA)
        cv2.ellipse(image, at, (max(r - 2, 1),) * 2, 0, 30, 150, (175, 178, 180), max(1, r // 5), cv2.LINE_AA)
        cv2.ellipse(image, at, (max(r - 1, 1),) * 2, 0, 215, 325, (105, 108, 110), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.7)


def _tape(rng: np.random.Generator, left: np.ndarray, right: np.ndarray, width: int) -> tuple:
    """Black tape outside `left` and `right` and, often, a seam between: RGB, opacity, and the light left beside it."""
    height, x, y = len(left), np.arange(width, dtype=np.float32)[None], np.arange(len(left))
    marks = np.zeros((height, width), np.uint8)
    for _ in range(max(2, width // 70)):  # wrinkles run along the tape
        path = rng.uniform(0, width) + rng.uniform(-0.06, 0.06) * y + 6 * _wander(rng, height, 90)
        line = np.round(np.stack([path, y], axis=-1)[::4] * 16).astype(np.int32)
        cv2.polylines(marks, [line], False, int(rng.integers(14, 40)), int(rng.integers(1, 10)), cv2.LINE_AA, 4)
    for at in (rng.uniform(0, 1, (height * width // 6000, 2)) * (width, height)).astype(int).tolist():  # dust, bubbles
        cv2.circle(marks, at, int(min(1 + rng.pareto(1.5), 9)), int(rng.integers(10, 60)), int(rng.choice((-1, 1, 2))))
    grey = cv2.GaussianBlur(marks, (0, 0), 0.9) * (0.7 + 0.3 * _noise(rng, height, width, 1.2))
    strips = np.cumsum(rng.random(width) < 0.004)
    tape = grey[..., None] + TAPE_TINTS[rng.integers(0, 5, strips[-1] + 1)][strips]

    outside = np.maximum(left[:, None] - x, x - right[:, None])
    if rng.random() < 0.5:
        middle = (left + right) / 2 + rng.uniform(-60, 60) + 3 * _wander(rng, height, 60)
        half = 12 + 7 * _wander(rng, height, 120) + 2 * _wander(rng, height, 10)
        outside = np.maximum(outside, half[:, None] - np.abs(x - middle[:, None]))
    film = _ramp((rng.uniform(5, 15) - outside) / 4)[..., None]  # a grey border of glue, then the tape
    tape += film * (np.array([42, 48, 52], np.float32) + 0.5 * grey[..., None] - tape)
    shade = 1 - 0.5 * _ramp((outside + 16) / 16)
    for side in (left, right):  # light leaks in at the edge: a white line of changing width, broken, with blobs
        edge = side + 2.5 * _wander(rng, height, 18)
        blobs = np.clip(_wander(rng, height, 10) + 0.6 * _wander(rng, height, 40) - 1.5, 0, 2)
        leak = rng.uniform(-4, 7) + 5 * _wander(rng, height, 100) + 8 * blobs
        glow = _ramp((leak[:, None] - np.abs(edge[:, None] - x)) / 2.5 + 0.5)
        tape += glow[..., None] * (np.array([220, 228, 228], np.float32) * rng.uniform(0.75, 1) - tape)
        outside = np.maximum(outside, 3 * glow - 1.5)
    return tape, _ramp(outside / 2 + 0.5), shade


def _scanner(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The line scanner: every column and row has its own small gain; slight blur along the scan; read-out noise."""
    height, width = image.shape[:2]
    gain = 1 + 0.01 * _wander(rng, width, 20) + 0.009 * rng.standard_normal(width)
    gain = (gain + 0.009 * rng.standard_normal((height, 1))).astype(np.float32)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigmaX=0.5, sigmaY=0.4)
    image = image * gain[..., None] + 1.2 * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
