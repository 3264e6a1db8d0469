"""One self-contained HTML page of a headless run: every lesson's metrics, pictures, settings and where it was made."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

from rootsam_lib.results import read_json, shown, write_text

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { border-top: 3px solid #0056a4; padding-top: .6rem; margin-top: 3rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid #bbb; padding: .2rem .6rem; text-align: left; } th { background: #eef2f6; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; } summary { cursor: pointer; }
"""


def flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Nested values under dotted names: {"a": {"b": 1}} becomes {"a.b": 1}."""
    rows: dict[str, object] = {}
    for name, value in values.items():
        rows |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return rows


def text(value: object) -> str:
    """A value as people read it, escaped: numbers to four digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def table(rows: Mapping[str, object], head: tuple[str, str]) -> str:
    """Two columns, one row a name."""
    lines = "".join(f"<tr><td>{html.escape(name)}</td><td>{text(value)}</td></tr>" for name, value in rows.items())
    return f"<table><tr><th>{head[0]}</th><th>{head[1]}</th></tr>{lines}</table>"


def _inline(markdown: str) -> str:
    """Bold, code and links' text of one line of Markdown. A link's target may be away: its text is enough here."""
    line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", html.escape(markdown))
    line = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", line)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", line)


def markdown(source: str) -> str:
    """Tables and paragraphs of a cell's Markdown output as HTML: all that the lessons print."""
    parts, rows = [], []
    for line in [*source.splitlines(), ""]:
        if line.startswith("|"):
            if set(line) - set("|-: "):
                tag = "td" if rows else "th"
                cells = line.strip().strip("|").split("|")
                rows.append("<tr>" + "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in cells) + "</tr>")
            continue
        if rows:
            parts.append(f"<table>{''.join(rows)}</table>")
            rows = []
        if line.strip():
            parts.append(f"<p>{_inline(line)}</p>")
    return "\n".join(parts)


def outputs(notebook: nbformat.NotebookNode) -> str:
    """A notebook's pictures, tables and printed lines, in order, without its code."""
    parts = []
    for cell in notebook.cells:
        heading = re.search(r"^## (.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and heading and heading[1] not in ("What you will learn", "Exercises"):
            parts.append(f"<h3>{_inline(heading[1])}</h3>")
        for output in cell.get("outputs", []):
            data, about = output.get("data", {}), output.get("metadata", {})
            for kind in ("image/jpeg", "image/png"):
                if kind in data:
                    alt = html.escape(about.get(kind, {}).get("alt", ""))
                    caption = f"<figcaption>{alt}</figcaption>" if alt else ""
                    source = f"data:{kind};base64,{data[kind].strip()}"
                    parts.append(
                        f'<figure><img src="{source}" alt="{alt or "a figure of this lesson"}">{caption}</figure>'
                    )
                    break
            else:
                if "text/markdown" in data:
                    parts.append(markdown(data["text/markdown"]))
                elif output.get("name") == "stdout":
                    parts.append(f"<pre>{html.escape(output.text)}</pre>")
    # A heading under which nothing is shown tells nothing.
    kept = [p for p, after in zip(parts, [*parts[1:], "<h3>"], strict=True) if not (p[:4] == after[:4] == "<h3>")]
    return "\n".join(kept)


def lesson_section(executed: Path, recorded: Mapping[str, object] | None, minutes: float | None) -> str:
    """One lesson: its promise, metrics, parameters, provenance and outputs."""
    notebook = nbformat.read(executed, as_version=4)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    promise = re.search(r"\*\*(.+?)\*\*", notebook.cells[0].source)
    parts = [f'<h2 id="{executed.stem}">{html.escape(title)}</h2>']
    parts.append(f"<p><b>{html.escape(promise[1])}</b></p>" if promise else "")
    if minutes is not None:
        parts.append(f"<p>Run time here: {minutes:.2f} min.</p>")
    if recorded:
        parts.append(table(flat(recorded["metrics"]), ("metric", "value")))
        about = table(flat(recorded["parameters"]), ("parameter", "value"))
        made = table(flat(recorded["provenance"]), ("made with", ""))
        parts.append(f"<details><summary>settings and provenance</summary>{about}{made}</details>")
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
<h2>This run</h2>{table(flat(values), ("parameter given", "value"))}{table(flat(provenance), ("made with", ""))}
{chr(10).join(sections)}
</body></html>
"""
    write_text(folder / "report.html", page)
    return folder / "report.html"
