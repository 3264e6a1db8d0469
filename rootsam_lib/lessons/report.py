"""One HTML page of a headless run: an index of the lessons with pictures, scores and minutes, the poster's claims, and
every lesson's metrics, outputs, settings and where it was made."""

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import bleach
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from PIL import Image

from rootsam_lib.lessons.claims import claims_table
from rootsam_lib.results import read_json, shown, write_text

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #bbb; --card: #f4f4f2; --blue: #0056a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #17191c; --line: #4a4f55; --card: #22262b; --blue: #6fb3f2; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); }
a { color: var(--blue); } h2 { border-top: 3px solid var(--blue); padding-top: .6rem; margin-top: 3rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; }
.dataframe td, .dataframe th { overflow-wrap: anywhere; }
pre, p, li { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; padding: 0; }
.cards li { list-style: none; background: var(--card); border-radius: 8px; padding: .8rem; }
.cards img { width: 100%; aspect-ratio: 2 / 1; object-fit: contain; }
@media (max-width: 40rem) { .cards img { aspect-ratio: auto; } }
.cards b { display: block; margin-top: .4rem; } .cards p { margin: .3rem 0; font-size: .9rem; }
"""
# Of an output only these tags reach the page: no script, link or style, and no picture from elsewhere.
TAGS = {"h3", "p", "pre", "code", "strong", "em", "ul", "ol", "li", "img", "table", "thead", "tbody", "tr", "th", "td"}
# Which of a lesson's metrics its card shows, and in which words.
HEADLINES = {
    "00": {"base_root_iou": "root IoU, base", "stage1_root_iou": "after a short training"},
    "01": {"expected_depth_px": "mean px from a click to the root's edge"},
    "02": {"root_share": "share of root pixels"},
    "03": {"val_root_iou": "root IoU on val"},
    "04": {"gain_1024": "Stage 2 over Stage 1, root IoU"},
    "05": {"base_root_iou": "root IoU, base", "stage2_root_iou": "RootSAM"},
    "06": {"before_root_iou": "root IoU before two clicks", "after_root_iou": "after"},
    "07": {"saved": "dollars saved, by the poster's arithmetic"},
    "08": {"length_relative_bias": "relative bias of root length", "calibrated_relative_bias": "calibrated"},
    "09": {"few_shot_cl_dice": "clDice from a few pairs"},
    "A1": {"iou_1": "IoU after one click on an object"},
    "A2": {"seed_spread": "spread of root IoU by seed"},
}


def table(values: Mapping[str, object]) -> str:
    """Nested values as a table of two columns, under dotted names: {"a": {"b": 1}} is in row a.b. All is escaped."""
    column = pd.json_normalize(dict(values)).T if values else pd.DataFrame({"": []})
    return column.to_html(header=False, na_rep="–", float_format="{:.4g}".format, border=0)


def _converted(cells: Sequence[nbformat.NotebookNode]) -> str:
    """Cells as HTML without code, and without anything that runs or is loaded."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True,
                            exclude_anchor_links=True)  # fmt: skip
    exporter.display_data_priority = ["image/jpeg", "image/png", "text/markdown", "text/plain"]
    page = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]
    return bleach.clean(page, TAGS, {"img": ["alt", "src"]}, protocols=["data"], strip=True)


def outputs(notebook: nbformat.NotebookNode) -> str:
    """A notebook's outputs as HTML, each under the heading it stands under, without its code and its text."""
    cells, heading = [], []
    for cell in notebook.cells:
        headings = [line for line in cell.source.splitlines() if line.startswith("## ")]
        if cell.cell_type == "markdown" and headings:
            heading = [nbformat.v4.new_markdown_cell(f"#{headings[-1]}")]
        elif cell.cell_type == "code" and cell.outputs:
            cells += [*heading, cell]
            heading = []
    return _converted(cells)


def thumbnail(notebook: nbformat.NotebookNode, width: int = 480) -> str:
    """A lesson's picture for its card, as an <img>: of the cell with the tag "cover", else its first; "" for none."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code.sort(key=lambda cell: "cover" not in cell.metadata.get("tags", []))
    for output in (output for cell in code for output in cell.outputs):
        if "image/jpeg" in output.get("data", {}):
            try:
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"]))).convert("RGB")
            except (ValueError, OSError):  # no picture: the lesson's section shows what it is
                continue
            picture.thumbnail((width, 10 * width))
            picture.save(small := io.BytesIO(), "JPEG", quality=80)
            alt = html.escape(output.data.get("text/plain", "a picture of this lesson"))
            return f'<img alt="{alt}" src="data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}">'
    return ""


def card(
    stem: str, notebook: nbformat.NotebookNode, metrics: Mapping[str, object], minutes: Mapping[str, float]
) -> str:
    """One lesson in the index: picture, title, what it promises, its scores and how long it took."""
    lines = notebook.cells[0].source.splitlines()
    title = html.escape(lines[0].lstrip("# "))
    promise = html.escape(next((line.strip("*") for line in lines[1:] if line.startswith("**")), ""))
    words = HEADLINES.get(stem[:2], {})
    known = {say: metrics[key] for key, say in words.items() if isinstance(metrics.get(key), (int, float))}
    scores = [f"{say} {value:,.0f}" if abs(value) >= 1000 else f"{say} {value:.3g}" for say, value in known.items()]
    took = [f"{minutes[stem]:.1f} min"] if stem in minutes else []
    facts = html.escape(" · ".join(took + scores))
    return f'<li>{thumbnail(notebook)}<b><a href="#{stem}">{title}</a></b><p>{promise}</p><p>{facts}</p></li>'


def lesson_section(
    stem: str, notebook: nbformat.NotebookNode, recorded: Mapping[str, Mapping], minutes: Mapping[str, float]
) -> str:
    """One lesson: its title, run time, metrics, parameters, provenance and outputs."""
    title = html.escape(notebook.cells[0].source.splitlines()[0].lstrip("# "))
    took = f"{minutes[stem]:.2f} min" if stem in minutes else "not known"
    metrics = recorded.get("metrics", {"": "this lesson has recorded none"})
    made = table({key: recorded[key] for key in ("parameters", "provenance") if key in recorded})
    return f"""<h2 id="{stem}">{title}</h2><p>Run time here: {took}.</p>{table(metrics)}
<details><summary>settings and provenance</summary>{made}</details>{outputs(notebook)}"""


def write_report(folder: Path, values: Mapping[str, object], provenance: Mapping[str, object]) -> Path:
    """Write `folder`/report.html from what the run left there: notebooks/, lessons/ and results/.

    folder: a profile's, such as runs/quick. values: the parameters given to the run. The page loads nothing from
    anywhere: pictures are part of it. Raises FileNotFoundError when no lesson was executed there.
    """
    executed = sorted((folder / "notebooks").glob("[0-9A]*.ipynb"))
    if not executed:
        raise FileNotFoundError(f"no executed lessons in {shown(folder / 'notebooks')}: run the tutorial first.")
    clock = folder / "results" / "minutes.json"
    minutes = read_json(clock)["minutes"] if clock.is_file() else {}
    cards, sections, data = [], [], set()
    for path in executed:
        try:
            notebook, record = nbformat.read(path, as_version=4), folder / "lessons" / f"{path.stem}.json"
            recorded = read_json(record) if record.is_file() else {}
            used = {recorded.get("parameters", {}).get("DATA", "none")} - {"none"}
            told = card(path.stem, notebook, recorded.get("metrics", {}), minutes)
            sections.append(lesson_section(path.stem, notebook, recorded, minutes))
        except (ValueError, TypeError, AttributeError, LookupError, nbformat.ValidationError):  # torn by a kill, edited
            what = f"{shown(path)} or its record in lessons/ is damaged, and left out of the report"
            warnings.warn(f"{what}: run lesson {path.stem[:2]} again (--only {path.stem[:2]}).", stacklevel=2)
            continue
        data |= used
        cards.append(told)
    data = data or {str(values.get("DATA", "synthetic"))}
    kind = (
        "Drawn scans: a toy run, whose scores say nothing about real roots." if "synthetic" in data else "Real scans."
    )
    kind += " Some lessons are of real scans: see each one's settings." if {"synthetic"} < data else ""
    title = f"RootSAM: the lessons, executed (profile {html.escape(folder.name)})"
    spent = f" {len(minutes)} lessons took {sum(minutes.values()):.0f} minutes here." if minutes else ""
    claims = _converted([nbformat.v4.new_markdown_cell(claims_table())])
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>
<p><b>{kind}</b>{spent} Scores with points from the true mask must not be compared with a method that finds roots
alone.</p><ul class="cards">{"".join(cards)}</ul><h2>What the poster says</h2><p>From the results files that come with
the project (real scans, the small model nano), not from this run.</p>{claims}<h2>This run</h2>
{table({"parameters": values, "provenance": provenance})}
{"".join(sections)}</body></html>
"""
    write_text(folder / "report.html", page)
    return folder / "report.html"
