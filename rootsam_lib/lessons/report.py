"""One HTML page of a headless run: every lesson's metrics, outputs, settings and where it was made."""

import html
from collections.abc import Mapping
from pathlib import Path

import bleach
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from rootsam_lib.results import read_json, shown, write_text

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { border-top: 3px solid #0056a4; padding-top: .6rem; margin-top: 3rem; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid #bbb; padding: .2rem .6rem; text-align: left; } pre { white-space: pre-wrap; }
"""
# Of an output only these tags reach the page: no script, link or style, and no picture from elsewhere.
TAGS = {"h3", "p", "pre", "code", "strong", "em", "ul", "ol", "li", "img", "table", "thead", "tbody", "tr", "th", "td"}


def table(values: Mapping[str, object]) -> str:
    """Nested values as a table of two columns, under dotted names: {"a": {"b": 1}} is in row a.b. All is escaped."""
    column = pd.json_normalize(dict(values)).T if values else pd.DataFrame({"": []})
    return column.to_html(header=False, na_rep="–", float_format="{:.4g}".format, border=0)


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
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_anchor_links=True)
    exporter.display_data_priority = ["image/jpeg", "image/png", "text/markdown", "text/plain"]
    page = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]
    return bleach.clean(page, TAGS, {"img": ["alt", "src"]}, protocols=["data"], strip=True)


def lesson_section(folder: Path, executed: Path, minutes: Mapping[str, float]) -> str:
    """One lesson: its title, run time, metrics, parameters, provenance and outputs."""
    notebook, record = nbformat.read(executed, as_version=4), folder / "lessons" / f"{executed.stem}.json"
    title = html.escape(notebook.cells[0].source.splitlines()[0].lstrip("# "))
    took = f"{minutes[executed.stem]:.2f} min" if executed.stem in minutes else "not known"
    recorded = read_json(record) if record.is_file() else {"metrics": {"": "this lesson has recorded none"}}
    made = table({key: recorded[key] for key in ("parameters", "provenance") if key in recorded})
    return f"""<h2 id="{executed.stem}">{title}</h2><p>Run time here: {took}.</p>{table(recorded["metrics"])}
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
    links = "".join(f'<li><a href="#{path.stem}">{path.stem.replace("_", " ")}</a></li>' for path in executed)
    real = str(values.get("DATA", "synthetic")) != "synthetic"
    kind = "Real scans." if real else "Drawn scans: a toy run, whose scores say nothing about real roots."
    title = f"RootSAM: report of the profile {html.escape(folder.name)}"
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>
<p><b>{kind}</b> Scores with points from the true mask must not be compared with a method that finds roots alone.</p>
<ul>{links}</ul><h2>This run</h2>{table({"parameters": values, "provenance": provenance})}
{"".join(lesson_section(folder, path, minutes) for path in executed)}</body></html>
"""
    write_text(folder / "report.html", page)
    return folder / "report.html"
