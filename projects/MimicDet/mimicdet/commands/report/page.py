"""
The page around the sections: one file, no request to anywhere, dark or light as the reader's; its
tables, and line charts as inline SVG in the page's colours.
"""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...visualization.curves import Panel, draw_panel

_FEW = 30  # points; a curve of so few shows each, which tells its value under the mouse

_STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1c2028; --faint: #5d6673;
  --line: #dde1e7; --accent: #1f6feb; --bar: #bcd6ff; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --ink: #e6e9ee;
  --faint: #9aa4b1; --line: #343a44; --accent: #6aa5ff; --bar: #2b4a7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 16px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 75ch; overflow-wrap: anywhere; }
.faint { color: var(--faint); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 12px 0; }
a { color: var(--accent); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px; margin: 14px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .88rem; white-space: normal;
  vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
.facts th, .facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td.best { font-weight: 700; }
.bar { display: inline-block; vertical-align: middle; width: 90px; height: 10px; margin-left: 8px;
  text-align: left; }
.bar i { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--faint); }
.pictures { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 460px), 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; align-content: start; }
.pair img { width: 100%;
  border-radius: 4px; display: block; }
.pair figcaption { grid-column: 1 / -1; font-weight: 400; font-size: .85rem; margin: 0; }
@media (max-width: 500px) { section { padding: 12px; } .bar { width: 40px; margin-left: 5px; }
  th, td { padding-right: 8px; font-size: .85rem; } }
details { margin-top: 12px; } summary { cursor: pointer; font-weight: 600; }
"""


Section = tuple[str, str, str]  # anchor, headline, HTML


@dataclass(frozen=True)
class Cell:
    """A table's cell: text, the length of a bar beside it (0..1, None: no bar), best of its row."""

    text: str
    bar: float | None = None
    best: bool = False


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole HTML document."""
    links = "".join(f'<a href="#{name}">{html.escape(head)}</a>' for name, head, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{html.escape(head)}</h2>{content}</section>'
        for name, head, content in sections
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="faint">{html.escape(subtitle)}</p>'
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | Cell]], style: str = "scroll"
) -> str:
    """
    A table; texts are escaped here. style: "scroll", numbers that go sideways where the screen is
    too narrow, or "facts", texts that are wrapped.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="{style}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    bar = ""
    if cell.bar is not None:
        width = 100 * min(max(cell.bar, 0.0), 1.0)
        bar = f'<span class="bar"><i style="width:{width:.0f}%"></i></span>'
    best = ' class="best"' if cell.best else ""
    return f"<td{best}>{html.escape(cell.text)}{bar}</td>"


def paragraph(text: str, faint: bool = True) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=faint' if faint else ''}>{html.escape(text)}</p>"


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; "-" where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def line_chart(panel: Panel) -> str:
    """An HTML figure of a panel: title, chart, legend. Empty where no value can be drawn."""
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    draw_panel(axes, panel, max(float(x[-1]) for x, *_ in panel.lines))
    lines = [line for line in axes.lines if len(line.get_xdata())]
    if not lines:
        return ""
    names = [str(line.get_label()) for line in lines]
    for line, name in zip(lines, names):
        x, y = (np.asarray(values) for values in line.get_data())
        for a, b in zip(x, y) if len(x) <= _FEW else ():
            told = f"{name}: {b:.4g} at {a:.4g}"
            axes.plot(a, b, "o", color=line.get_color(), markersize=4, gid=told)
    columns = max(min(50 // (max(map(len, names)) + 6), 4), 1)
    figure.set_size_inches(
        4.4, 2.6 + 0.16 * -(-len(names) // columns)
    )  # a line for each row of names
    figure.legend(lines, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    return chart(figure, panel.title, f"{panel.title}: {', '.join(names)}")


def chart(figure: Figure, title: str, label: str) -> str:
    """An HTML figure of a drawing; the label is for those who do not see it."""
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f"{_inline_svg(figure, html.escape(label))}</figure>"
    )


def charts(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="charts">{"".join(figures)}</div>'


def _inline_svg(figure: Figure, label: str) -> str:
    """The figure's SVG element, the same for the same figure; black becomes the page's ink."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mimicdet"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # HTML needs no names of namespaces, nothing lies outside the axes, and a <style> would hold for
    # the whole page.
    unneeded = r' xmlns(:\w+)?="[^"]*"| clip-path="[^"]*"|<style.*?</style>'
    text = re.sub(unneeded, "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="([^"]* at [^"]*)">', r"<g><title>\1</title>", text)
    text = text.replace("#000000", "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
