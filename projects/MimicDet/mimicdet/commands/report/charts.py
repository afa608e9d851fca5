"""Line charts as inline SVG that takes the page's colours, dark or light."""

import html
import io
import re

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...visualization.curves import Panel, draw_panel

_FEW = 30  # points; a curve of so few shows each, which tells its value under the mouse


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
    title = html.escape(panel.title)
    label = html.escape(f"{panel.title}: {', '.join(names)}")
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f"{_inline_svg(figure, label)}</figure>"
    )


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
