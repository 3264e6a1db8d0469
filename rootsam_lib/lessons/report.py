"""One self-contained HTML page of a headless run: every lesson's metrics, outputs, settings and where it was made."""

import html
import re
from collections.abc import Mapping
from pathlib import Path

import bleach
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from rootsam_lib.results import read_json, shown, write_text

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { border-top: 3px solid #0056a4; padding-top: .6rem; margin-top: 3rem; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; border: 0; }
td, th { border: 1px solid #bbb; padding: .2rem .6rem; text-align: left; } th { background: #eef2f6; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
"""
# Of an output the first of these kinds is shown, and of that only these tags reach the page: no script, link or style.
KINDS = ["image/jpeg", "image/png", "text/markdown", "text/plain"]
TAGS = {"h3", "p", "pre", "code", "strong", "em", "ul", "ol", "li", "img"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
PICTURE = re.compile(r"data:image/(jpeg|png);base64,[\sA-Za-z0-9+/=]*")


def table(values: Mapping[str, object]) -> str:
    """Nested values as a table of two columns, under dotted names: {"a": {"b": 1}} is in row a.b. All is escaped."""
    column = pd.json_normalize(dict(values)).T if values else pd.DataFrame({"": []})
    return column.to_html(header=False, na_rep="–", float_format="{:.4g}".format, border=0)


def outputs(notebook: nbformat.NotebookNode) -> str:
    """A notebook's headings and outputs as inert HTML, without its code and its text."""
    kept = []
    for cell in notebook.cells:
        headings = [line for line in cell.source.splitlines() if line.startswith("## ")]
        if cell.cell_type == "code" and cell.outputs:
            kept.append(cell)
        elif cell.cell_type == "markdown" and headings:
            kept.append(nbformat.v4.new_markdown_cell(f"#{headings[-1]}"))
    after = [*(cell.cell_type for cell in kept[1:]), "markdown"]
    # A heading under which nothing is shown tells nothing.
    cells = [cell for cell, kind in zip(kept, after, strict=True) if "code" in (cell.cell_type, kind)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_anchor_links=True)
    exporter.display_data_priority = KINDS
    page = exporter.from_notebook_node(notebook)[0]
    return bleach.clean(page, TAGS, {"img": picture_only}, protocols={"data"}, strip=True)


def picture_only(tag: str, name: str, value: str) -> bool:
    """Whether an attribute of an image may stay: its words, and a picture that is part of the page."""
    return name == "alt" or (name == "src" and PICTURE.fullmatch(value) is not None)


def lesson_section(executed: Path, recorded: Mapping[str, object] | None, minutes: float | None) -> str:
    """One lesson: its title, metrics, parameters, provenance and outputs."""
    notebook = nbformat.read(executed, as_version=4)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    parts = [f'<h2 id="{executed.stem}">{html.escape(title)}</h2>']
    if minutes is not None:
        parts.append(f"<p>Run time here: {minutes:.2f} min.</p>")
    if recorded:
        made = table({"parameters": recorded["parameters"], "provenance": recorded["provenance"]})
        parts.append(f"{table(recorded['metrics'])}<details><summary>settings and provenance</summary>{made}</details>")
    else:
        parts.append("<p>This lesson has recorded no metrics in this profile.</p>")
    return "\n".join([*parts, outputs(notebook)])


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
    sections, links = [], []
    for path in executed:
        record = folder / "lessons" / f"{path.stem}.json"
        recorded = read_json(record) if record.is_file() else None
        sections.append(lesson_section(path, recorded, minutes.get(path.stem)))
        links.append(f'<li><a href="#{path.stem}">{html.escape(path.stem.replace("_", " "))}</a></li>')
    real = str(values.get("DATA", "synthetic")) != "synthetic"
    kind = "Real scans." if real else "Drawn scans: a toy run, whose scores say nothing about real roots."
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>RootSAM: report of the profile {html.escape(folder.name)}</title><style>{STYLE}</style></head>
<body><h1>RootSAM: report of the profile <code>{html.escape(folder.name)}</code></h1>
<p><b>{kind}</b> Scores with points from the true mask must not be compared with a method that finds roots alone.</p>
<ul>{"".join(links)}</ul>
<h2>This run</h2>{table({"parameters": values, "provenance": provenance})}
{chr(10).join(sections)}
</body></html>
"""
    write_text(folder / "report.html", page)
    return folder / "report.html"
