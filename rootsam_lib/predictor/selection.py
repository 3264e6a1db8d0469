"""What clicks do to a mask: which roots they select, what they correct, and that each is followed.

All of it works on logits, with no model at hand: `Predictor` asks the model and then calls what is here.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rootsam_lib.metrics import dilate, label_roots
from rootsam_lib.prompts import ROOT, SOIL

NO_ROOT = -10.0  # the logit of an empty start: soil, and by far


class Click(NamedTuple):
    """x to the right and y down, in whole pixels of the image; label 1 root, 0 soil."""

    x: int
    y: int
    label: int


def parse_clicks(text: str) -> list[Click]:
    """Clicks from a parameter: "x,y,label" joined by ";", such as "310,200,1;40,52,0"; "" is no click.

    Raises ValueError, naming the entry, for anything else.
    """
    clicks = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        try:
            x, y, label = (int(number) for number in entry.split(","))
        except ValueError:
            label = -1
        if label not in (ROOT, SOIL) or min(x, y) < 0:
            raise ValueError(
                f"click {entry!r} is not x,y,label: give whole pixels and 1 for root or 0 for soil, as in 310,200,1."
            )
        clicks.append(Click(x, y, label))
    return clicks


def follow_clicks(
    logits: np.ndarray, clicks: Iterable[Sequence[float]], reach: float = 5.0, margin: float = 2.0
) -> np.ndarray:
    """Correct mask logits, float32 (H, W), where the model did not follow a click: at least there the person is right.

    clicks: (x, y, label) in px of the logits, in the order in which they were made. Around a click whose logit is not
    on its side by `margin`, all logits move by what the click's lacks, fading out as a Gaussian of `reach` px.
    Without it one mistake that the model insists on takes every further click.
    """
    logits = logits.copy()
    for x, y, label in clicks:
        column, row, sign = int(x), int(y), 1 if label else -1
        lacking = margin - sign * float(logits[row, column])
        if lacking > 0:
            far = int(4 * reach)
            top, left = max(row - far, 0), max(column - far, 0)
            window = logits[top : row + far + 1, left : column + far + 1]  # a view
            down, right = np.ogrid[: window.shape[0], : window.shape[1]]
            distance = (down + top - row) ** 2 + (right + left - column) ** 2
            window += sign * lacking * np.exp(-distance / (2 * reach**2)).astype(np.float32)
    return logits


def select_roots(automatic: np.ndarray, prompted: np.ndarray, clicks: Sequence[Click], reach: int = 4) -> np.ndarray:
    """The roots that clicks mean, and no others; all logits are float32 (H, W).

    A root is what hangs together, corners and gaps of up to 2 px included, in the automatic answer and in those pieces
    of the prompted one that a root click lies on: these find roots that were missed, and join what was broken. A click
    means the nearest root within `reach` px. One that carries clicks of both kinds is shared out: each pixel goes with
    the nearest click. (A prompted answer alone fades along the root, away from the click; what hangs together does not,
    and goes on into the next tile.)
    """
    pieces = connected(prompted)
    asked = [_nearest(pieces, click, reach) for click in clicks if click.label == ROOT]
    asked = np.isin(pieces, asked) & (pieces > 0)
    logits = np.where(asked, np.maximum(automatic, prompted), automatic)
    roots, meant = connected(logits), np.zeros(logits.shape, bool)
    carried: dict[int, list[Click]] = {}
    for click in clicks:
        carried.setdefault(_nearest(roots, click, reach), []).append(click)
    carried.pop(0, None)  # clicks with no root near
    for root, own in carried.items():
        rows, columns = np.nonzero(roots == root)
        away = [(rows - click.y) ** 2 + (columns - click.x) ** 2 for click in own]
        meant[rows, columns] = np.array([click.label for click in own])[np.argmin(away, 0)] == ROOT
    return np.where(meant | (logits < 0), logits, np.float32(NO_ROOT))


def connected(logits: np.ndarray) -> np.ndarray:
    """Numbers of what hangs together, int (H, W); dilation by 1 px joins what is up to 2 px apart."""
    found = logits > 0
    return label_roots(dilate(found), least=1)[0] * found


def _nearest(roots: np.ndarray, click: Click, reach: int) -> int:
    """The number of the root nearest to a click, 0 where none lies within `reach` px in x and y."""
    top, left = max(click.y - reach, 0), max(click.x - reach, 0)
    window = roots[top : click.y + reach + 1, left : click.x + reach + 1]
    rows, columns = np.nonzero(window)
    if not rows.size:
        return 0
    nearest = np.argmin((rows + top - click.y) ** 2 + (columns + left - click.x) ** 2)
    return int(window[rows[nearest], columns[nearest]])


def changes_at_clicks(
    before: np.ndarray, after: np.ndarray, clicks: Iterable[Sequence[float]], reach: int = 40
) -> np.ndarray:
    """A mask's logits, float32 (H, W), changed only where a click asked for it (FocalClick, Chen et al. 2022, section
    3.3: progressive merge).

    before, after: logits without and with the clicks; clicks: (x, y, label) in px. A root click adds the connected
    piece of new root that it lies on, whole; a soil click takes off the piece of old root that it lies on, up to
    `reach` px away. All else stays as it was: a point also says which roots are meant, and a correction must not take
    that for "and no others". A click lies on a piece from 3 px away.
    """
    merged = before.copy()
    height, width = before.shape
    pieces = {}
    for label, changed in ((ROOT, (after > 0) & (before <= 0)), (SOIL, (after <= 0) & (before > 0))):
        pieces[label] = label_roots(changed, least=1)[0]
    for x, y, label in clicks:
        column, row = int(x), int(y)
        near = pieces[label][max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
        for piece in np.unique(near[near > 0]):
            changed = pieces[label] == piece
            if label == SOIL:
                rows, columns = np.ogrid[:height, :width]
                changed &= (np.abs(rows - row) <= reach) & (np.abs(columns - column) <= reach)
            merged[changed] = after[changed]
    return merged
