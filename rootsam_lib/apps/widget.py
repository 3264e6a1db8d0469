"""The click-to-correct widget: a canvas in the notebook that shows a `Session` and tells it where a person clicks.

The browser draws, zooms and pans by itself; a click is a message to the kernel, which decodes once and sends back the
mask as a small PNG. No cell waits for anything: read the session in a later cell.
"""

import io
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from IPython.display import Image as Picture
from IPython.display import display
from PIL import Image, ImageColor, ImageDraw

from rootsam_lib.apps.correct import Session
from rootsam_lib.drawing import FALSE, FOUND, MASK, MISSED, ROOT_POINT, SOIL_POINT, overlay
from rootsam_lib.prompts import ROOT
from rootsam_lib.results import encode_image

COLOURS = {"root": ROOT_POINT, "soil": SOIL_POINT, "mask": MASK, "found": FOUND, "missed": MISSED, "false root": FALSE}


def layer_png(mask: np.ndarray, truth: np.ndarray | None = None) -> bytes:
    """What is laid over the image, as a PNG with few colours: the mask in cyan, or, with the truth, found roots white,
    missed ones orange and false ones blue; transparent elsewhere. Masks bool (H, W)."""
    colours = [MASK] if truth is None else [FALSE, MISSED, FOUND]
    index = mask.astype(np.uint8) if truth is None else mask.astype(np.uint8) + 2 * truth.astype(np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette([0, 0, 0, *(value for colour in colours for value in ImageColor.getrgb(colour))])
    written = io.BytesIO()
    picture.save(written, "PNG", bits=2, transparency=0, compress_level=1)
    return written.getvalue()


class Annotator(anywidget.AnyWidget):
    """A session's canvas. Everything that a person does comes in as one message and goes out as one state."""

    _esm = Path(__file__).with_name("widget.js")
    image = traitlets.Bytes().tag(sync=True)  # JPEG of the open image, sent once
    layer = traitlets.Bytes().tag(sync=True)  # PNG laid over it
    points = traitlets.List().tag(sync=True)  # [x, y, label, tool, x2, y2] in px of the image, as `Clicked`
    status = traitlets.Dict().tag(sync=True)  # what the line below the canvas says
    colours = traitlets.Dict(COLOURS).tag(sync=True)

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        self._view, self._answers = "mask", 0
        self.on_msg(lambda _, message, buffers: self.hear(message))
        self._show(message="", opened=True)

    def hear(self, message: dict) -> None:
        """Do what the browser asks for, and answer with the new state; what cannot be done is said there."""
        session, name, said, refused = self.session, self.session.name, "", False
        number, place = message.get("number"), (message.get("x"), message.get("y"))
        actions = {
            "add": lambda: session.add(*place, message["label"]),
            "use": lambda: session.use(message["tool"], *place, message.get("x2", -1), message.get("y2", -1)),
            "move": lambda: session.move(number, *place),
            "remove": lambda: session.remove(number),
            "undo": session.undo,
            "redo": session.redo,
            "next": session.next,
            "previous": session.previous,
            "done": lambda: session.set_done(not session.is_done(session.position)),
            "save": session.save,
            "view": lambda: setattr(self, "_view", message["view"]),
        }
        try:
            said = actions[message["do"]]() or ""
            refused = bool(said)
            if message["do"] == "use" and not session.clicks[-1].obeyed:
                said = "nothing changed: click next to a root to remove it" if message["tool"] == "remove" else ""
            if failed := session.rows.get(name, {}).get("not_measured"):
                said, refused = f"{name} is saved, but could not be measured: {failed}", True
            elif message["do"] == "save":
                said = f"saved in {session.folder.name}/"
        except Exception as error:  # whatever it is, it is said on the canvas, and the next click works
            said, refused = str(error) or type(error).__name__, True
        self._show(said, refused, opened=session.name != name)

    def _show(self, message: str, refused: bool = False, opened: bool = False) -> None:
        session = self.session
        truth = session.scan.mask if self._view == "error" else None
        self._answers += 1
        with self.hold_sync():  # one message to the browser, or it would draw halves
            if opened:
                self.image = encode_image(session.scan.image, ".jpg")
            self.layer = layer_png(session.mask, truth)
            self.points = [[*click[:3], click.tool, click.x2, click.y2] for click in session.clicks]
            height, width = session.mask.shape
            self.status = {
                "answer": self._answers,
                "name": session.name,
                "position": session.position,
                "images": len(session.names),
                "done": session.is_done(session.position),
                "done_images": sum(session.is_done(i) for i in range(len(session.names))),
                "predicted_iou": session.predictor.predicted_iou,
                "has_truth": session.scan.mask is not None,
                "view": self._view,
                "light": session.predictor.gain,  # how bright it is first shown: as the model sees it
                "width": width,
                "height": height,
                "message": message,
                "refused": refused,
            }

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict] | dict | None:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = "Run this cell to click on the image. Without a kernel, it is the picture below."
        return bundle


def still(session: Session, width: int = 800) -> bytes:
    """The open image with its mask and clicks as a JPEG, at most `width` px wide: what remains without a kernel."""
    scale = min(1.0, width / session.mask.shape[1])
    picture = Image.fromarray(overlay(session.scan.image, session.mask))
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for x, y, label, *_, tool, x2, y2 in session.clicks:
        x, y = (x + 0.5) * scale, (y + 0.5) * scale
        if tool == "exclude":
            (left, right), (top, bottom) = sorted((x, (x2 + 0.5) * scale)), sorted((y, (y2 + 0.5) * scale))
            draw.rectangle((left, top, right, bottom), outline="white", width=2)
        if tool != "click":
            continue
        if label == ROOT:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=ROOT_POINT, outline="white", width=2)
            continue
        for colour, thick in (("white", 7), (SOIL_POINT, 3)):  # a cross, as in figures.draw_prompts
            draw.line((x - 5, y - 5, x + 5, y + 5), colour, thick)
            draw.line((x - 5, y + 5, x + 5, y - 5), colour, thick)
    return encode_image(np.asarray(picture), ".jpg")


def annotate(session: Session) -> None:
    """Show the widget, and below it a picture of the same for where no kernel runs (a live widget hides it)."""
    display(Annotator(session))
    alt = f"The scan {session.name} with its mask in cyan and its clicks: green circles on roots, red crosses on soil"
    display(Picture(data=still(session), format="jpeg", metadata={"alt": alt}))
