"""Procedural scenes of general objects, from a seed: what `nano` was pretrained on.

A scene is a textured background with blobs, polygons, ellipses, rings, glyphs and strokes stacked on it, under strong
photometric nuisance, and a label map that says which visible pixel belongs to which object. Nothing here is a root or
soil, and no photograph is used.
"""

from typing import NamedTuple

import cv2
import numpy as np

KINDS = ("blob", "polygon", "ellipse", "ring", "glyph", "stroke", "wire", "region")
_SHARES = np.array([0.22, 0.18, 0.14, 0.08, 0.07, 0.14, 0.09, 0.08])
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
_SUBPIXEL_BITS = 4  # vertices are given to cv2 in 1/16 px, so that edges are anti-aliased at their true place


class Scene(NamedTuple):
    """image uint8 (S, S, 3); labels uint8 (S, S), 0 background and 1..K the objects; families int (K + 1,).

    Objects of one family share shape and look; family 0 is the background.
    """

    image: np.ndarray
    labels: np.ndarray
    families: np.ndarray


def draw_scene(rng: np.random.Generator, size: int, difficulty: float = 1.0) -> Scene:
    """Draw one scene of size x size px.

    difficulty: 0 draws few, large objects of high contrast; 1 draws many, small, faint and thin ones as well.
    """
    image = _texture(rng, size, _colour(rng), contrast=rng.uniform(4, 8 + 50 * difficulty))
    if rng.random() < 0.3:  # a second background, which is not an object
        alpha = _shape(rng, "region", size, rng.uniform(0.5, 1.2), difficulty)
        _paint(rng, image, alpha, _texture(rng, size), shaded=False)
    labels = np.zeros((size, size), np.uint8)
    count = int(rng.integers(2, 6 + round(20 * difficulty)))
    sizes = np.sort(np.exp(rng.uniform(np.log(0.26 - 0.2 * difficulty), np.log(0.65), count)))[::-1]
    if rng.random() < 0.25 * difficulty:  # crowds: many alike, of one size
        sizes = np.full(count + 6, rng.uniform(0.07, 0.22))
    families, palette = [0], []
    for relative in sizes:
        if not palette or rng.random() > 0.45:
            palette.append(_look(rng, image, difficulty))
        family = int(rng.integers(len(palette)))
        look = palette[family]
        kind = look["kind"]
        alpha = _shape(rng, kind, size, relative, difficulty)
        solid = alpha > 127
        area = int(solid.sum())
        if area < 12 or area > 0.6 * size * size:
            continue
        if look["apart"] and labels[solid].any() and rng.random() < 0.8:
            continue
        covered, skin = image[solid], _skin(rng, look, alpha)
        if np.abs(covered.mean(0) - look["colour"]).max() < max(8, 0.4 * covered.std(0).mean()):
            continue  # nobody could see it
        _paint(rng, image, alpha, skin, look["shaded"], look["outline"], look["shadow"])
        labels[solid] = len(families)
        families.append(family + 1)
    return Scene(_photograph(rng, image, difficulty), labels, np.array(families))


def numbered_scene(seed: int, stream: int, index: int, size: int, difficulty: float = 1.0) -> Scene:
    """Scene `index` of a stream: always the same one. Stream 0 is for held-out scenes, phase p of training takes p."""
    cv2.setNumThreads(1)  # the last digits of what cv2 computes may depend on its number of threads
    return draw_scene(np.random.default_rng([seed, stream, size, index]), size, difficulty)


def object_sizes(scene: Scene) -> np.ndarray:
    """Visible pixels of each label, int (K + 1,); an object that was covered has few, or none."""
    return np.bincount(scene.labels.ravel(), minlength=len(scene.families))


def _colour(rng: np.random.Generator) -> np.ndarray:
    grey = rng.uniform(20, 235)
    return np.clip(grey + rng.normal(0, rng.uniform(0, 55), 3), 5, 250).astype(np.float32)


def _look(rng: np.random.Generator, image: np.ndarray, difficulty: float) -> dict:
    """What the objects of one family share."""
    contrast = 90.0 if rng.random() > difficulty else float(np.exp(rng.uniform(np.log(14), np.log(110))))
    direction = rng.normal(0, rng.uniform(0.1, 1), 3) + rng.choice([-1.0, 1.0])  # mostly of brightness
    offset = (contrast * direction / (np.abs(direction).mean() + 1e-6)).astype(np.float32)
    base = image.reshape(-1, 3)[:: max(1, image.size // 3000)].mean(0)
    colour = base + offset
    colour = np.where((colour < 0) | (colour > 255), base - offset, colour)
    return {
        "kind": str(rng.choice(KINDS, p=_SHARES)),
        "apart": rng.random() < 0.5,
        "colour": np.clip(colour, 3, 252).astype(np.float32),
        "texture": rng.uniform(2, 8 + 45 * difficulty) if rng.random() < 0.7 else 0.0,
        "recipe": int(rng.integers(2**31)),
        "shaded": rng.random() < 0.35,
        "outline": float(rng.choice([0, -1, 1], p=[0.65, 0.22, 0.13])) * rng.uniform(15, 70),
        "shadow": rng.random() < 0.2,
    }


def _skin(rng: np.random.Generator, look: dict, alpha: np.ndarray) -> np.ndarray:
    """The surface of one object: float32 (s, s, 3) with s the longer side of its bounding box, or one colour (3,)."""
    colour = np.clip(look["colour"] + rng.normal(0, 4, 3), 3, 252).astype(np.float32)
    if not look["texture"]:
        return colour
    side = max(cv2.boundingRect(alpha)[2:])
    return _texture(np.random.default_rng(look["recipe"]), side, colour, look["texture"], side / len(alpha))


def _noise(rng: np.random.Generator, size: int, cells: float) -> np.ndarray:
    """Smooth noise, float32 (S, S), about zero mean and unit deviation, with `cells` grains along a side."""
    side = int(np.clip(cells, 2, size)) + 2
    grid = rng.standard_normal((side, side), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC if side < size // 2 else cv2.INTER_LINEAR)


def _texture(rng: np.random.Generator, size: int, colour=None, contrast=None, share: float = 1.0) -> np.ndarray:
    """A textured sheet, float32 (S, S, 3), whose side is `share` of the scene's."""
    colour = _colour(rng) if colour is None else colour
    contrast = rng.uniform(3, 45) if contrast is None else contrast
    kind = rng.choice(["clouds", "grain", "stripes", "checks", "cells", "plain"], p=[0.25, 0.25, 0.15, 0.08, 0.17, 0.1])
    if kind == "clouds":
        pattern = _noise(rng, size, share * rng.uniform(2, 10)) + 0.5 * _noise(rng, size, share * rng.uniform(10, 40))
    elif kind == "grain":
        pattern = _noise(rng, size, np.exp(rng.uniform(np.log(16 * share), np.log(size))))
    elif kind == "plain":
        pattern = _noise(rng, size, 2) * 0.3
    else:
        y, x = np.mgrid[:size, :size].astype(np.float32) / size
        angle, waves = rng.uniform(0, np.pi), share * np.exp(rng.uniform(np.log(5), np.log(50)))
        u = waves * (x * np.cos(angle) + y * np.sin(angle)) + 0.3 * rng.random() * _noise(rng, size, 6)
        if kind == "stripes":
            pattern = np.sin(2 * np.pi * u)
        else:
            v = waves * (y * np.cos(angle) - x * np.sin(angle))
            pattern = np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)
            pattern = np.sign(pattern) * 0.8 if kind == "checks" else np.clip(3 * (pattern - 0.5), -0.5, 1)
    tint = (1 + rng.normal(0, 0.25, 3)).astype(np.float32) * np.float32(contrast * 0.7)
    return colour + pattern.astype(np.float32)[..., None] * tint


def _shape(rng: np.random.Generator, kind: str, size: int, relative: float, difficulty: float) -> np.ndarray:
    """The anti-aliased silhouette of one object, uint8 (S, S); relative: its diameter as a share of the side."""
    alpha = np.zeros((size, size), np.uint8)
    centre = rng.uniform(-0.02, 1.02, 2) * size
    radius = relative * size / 2
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def fill(points: np.ndarray, value: int = 255) -> None:
        fixed = np.round((points @ turn.T + centre) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(alpha, [fixed], value, cv2.LINE_AA, _SUBPIXEL_BITS)

    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    if kind == "blob":
        order = np.arange(1, 7)
        waves = rng.normal(0, rng.uniform(0.1, 0.5), 6) / order**0.8
        radial = 1 + waves @ np.cos(np.outer(order, t) + rng.uniform(0, 2 * np.pi, 6)[:, None])
        radial = np.clip(radial, 0.25, None)
        fill(radius * np.stack([np.cos(t), stretch * np.sin(t)], 1) * (radial / radial.max())[:, None])
    elif kind == "polygon":
        corners = int(rng.integers(3, 9))
        if corners == 4:
            fill(radius * np.array([[-1, -stretch], [1, -stretch], [1, stretch], [-1, stretch]]))
        else:
            spokes = np.sort(rng.uniform(0, 2 * np.pi, corners)) if rng.random() < 0.5 else t[:: 72 // corners]
            reach = rng.uniform(0.45, 1, len(spokes)) if rng.random() < 0.6 else np.ones(len(spokes))
            fill(radius * np.stack([np.cos(spokes), np.sin(spokes)], 1) * reach[:, None])
    elif kind in ("ellipse", "ring"):
        stretch = 1 - (1 - stretch) * (rng.random() < 0.6)
        circle = radius * np.stack([np.cos(t), stretch * np.sin(t)], 1)
        fill(circle)
        if kind == "ring":
            fill(circle * rng.uniform(0.35, 0.8), 0)
    elif kind == "glyph":
        letter = chr(int(rng.choice([*range(48, 58), *range(65, 91)])))
        scale, thick = radius / 11, max(1, round(radius * rng.uniform(0.12, 0.4)))
        (width, height), _ = cv2.getTextSize(letter, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        corner = (int(centre[0] - width / 2), int(centre[1] + height / 2))
        cv2.putText(alpha, letter, corner, int(rng.choice(_FONTS)), scale, 255, thick, cv2.LINE_AA)
    elif kind in ("stroke", "wire"):
        length = max(relative * 1.5, 0.2) * size
        knots = np.cumsum(rng.normal(0, rng.uniform(0.05, 0.9), 5))
        bend = np.interp(np.linspace(0, 4, 40), range(5), knots)
        path = np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), 0) * length / 40
        path = (path - path.mean(0)) @ turn.T + centre
        width = rng.uniform(0.02, 0.07) if kind == "stroke" else rng.uniform(0.008, 0.016 + 0.014 * (1 - difficulty))
        fixed = np.round(path * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(alpha, [fixed], False, 255, max(2, round(width * size)), cv2.LINE_AA, _SUBPIXEL_BITS)
    else:  # region: the level set of smooth noise, cut to one piece around its centre
        field = _noise(rng, size, rng.uniform(2, 7))
        y, x = np.mgrid[:size, :size].astype(np.float32)
        far = np.hypot(x - centre[0], y - centre[1]) / (1.3 * radius)
        alpha = np.clip(127 + 4 * size * (1 - far**2 + 0.5 * field), 0, 255).astype(np.uint8)
        pieces, labels, stats, _ = cv2.connectedComponentsWithStats((alpha > 127).astype(np.uint8))
        if pieces > 2:
            alpha[labels != 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])] = 0
    return alpha


def _paint(rng: np.random.Generator, image, alpha, skin, shaded: bool, outline: float = 0.0, shadow=False) -> None:
    """Lay an object over the image, in place, with its shading, outline and shadow."""
    x, y, w, h = cv2.boundingRect(alpha)
    if shadow:
        depth, reach = rng.uniform(0.15, 0.45), max(2, int(rng.uniform(0.01, 0.03) * len(image)))
        moved = np.roll(alpha, (reach, reach), (0, 1))
        image *= 1 - depth * cv2.blur(moved, (reach, reach)).astype(np.float32)[..., None] / 255
    box = (slice(y, y + h), slice(x, x + w))
    if skin.ndim == 3:
        skin = skin[box] if len(skin) == len(image) else skin[:h, :w]
    cover = alpha[box].astype(np.float32)[..., None] / 255
    light = np.zeros((h, w, 1), np.float32)
    if shaded:
        tilt = rng.uniform(-45, 45, 2).astype(np.float32)
        light += (np.linspace(-1, 1, h, dtype=np.float32)[:, None] * tilt[0])[..., None]
        light += (np.linspace(-1, 1, w, dtype=np.float32)[None] * tilt[1])[..., None]
    if outline and min(w, h) > 6:
        side = 2 * max(1, round(0.012 * min(w, h) + 0.3)) + 1
        core = cv2.erode(alpha[box], np.ones((side, side), np.uint8), borderValue=255)
        light += outline * (1 - core.astype(np.float32)[..., None] / 255)
    image[box] += cover * (skin + light - image[box])


def _photograph(rng: np.random.Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """Light, lens, sensor and file: float32 (S, S, 3) to uint8."""
    size, amount = len(image), 0.3 + 0.7 * difficulty
    if rng.random() < 0.6:
        slope = rng.normal(0, 0.25 * amount, 2)
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        image = image * np.exp(slope[0] * ramp[:, None] + slope[1] * ramp[None]).astype(np.float32)[..., None]
    if rng.random() < 0.3 * amount:
        image = image + 15 * amount * _noise(rng, size, rng.uniform(2, 6))[..., None]
    if rng.random() < 0.5 * amount:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6) * (size / 256) ** 0.5)
    if rng.random() < 0.35:
        image = image * rng.uniform(0.5, 1) + rng.uniform(0, 100)
    if rng.random() < 0.25:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    if rng.random() < 0.7:
        image = image + rng.normal(0, rng.uniform(1, 3 + 13 * amount), image.shape).astype(np.float32)
    if rng.random() < 0.3:
        image = 255 * (np.clip(image, 0, 255) / 255) ** rng.uniform(0.6, 1.6)
    image = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 90))])
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image)
