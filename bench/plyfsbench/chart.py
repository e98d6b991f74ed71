# SPDX-License-Identifier: MIT
"""The results as one picture: a row a metric, a dot a system, at its ratio to the kernel's overlayfs
on a logarithmic scale. Left of the line at 1 is faster.
"""

import math
from xml.sax.saxutils import escape

COLOURS = ["#888888", "#000000", "#d7191c", "#fdae61", "#2b83ba", "#7b3294", "#1a9641", "#a6761d",
           "#e7298a", "#66a61e", "#1f78b4", "#b15928"]
LEAST, MOST = 0.05, 40.0
LEFT, WIDTH, ROW, TOP = 250, 760, 17, 96
GRID = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def place(ratio):
    ratio = min(max(ratio, LEAST), MOST)
    return LEFT + WIDTH * math.log(ratio / LEAST) / math.log(MOST / LEAST)


def text(x, y, shown, **attributes):
    extra = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(shown)}</text>'


def line(x1, y1, x2, y2, colour, width=1):
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def dot(x, y, colour, title):
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{colour}" fill-opacity="0.85">'
        f"<title>{escape(title)}</title></circle>"
    )


def cross(x, y, colour, title):
    """A system that failed: at the right edge, where no number is."""
    return (
        f'<path d="M{x - 4:.1f} {y - 4:.1f} l8 8 m0 -8 l-8 8" stroke="{colour}" stroke-width="2">'
        f"<title>{escape(title)}</title></path>"
    )


def legend(colours):
    out, x, y = [], 20, 52
    for system, colour in colours.items():
        step = 24 + 6.5 * len(system)
        if x + step > LEFT + WIDTH + 40:
            x, y = 20, y + 14
        out.append(dot(x, y, colour, system))
        out.append(text(x + 8, y + 4, system))
        x += step
    return out


def grid(bottom):
    out = []
    for ratio in GRID:
        x = place(ratio)
        out.append(line(x, TOP - 12, x, bottom, "#333333" if ratio == 1 else "#dddddd"))
        out.append(text(x, TOP - 16, f"{ratio:g}", text_anchor="middle", fill="#555555"))
    return out


def row(y, name, metric, colours):
    out = [text(LEFT - 10, y + 4, name, text_anchor="end")]
    for system, cell in metric["systems"].items():
        label = f"{name}: {system}"
        if cell["failures"]:
            out.append(cross(LEFT + WIDTH + 14, y, colours[system], f"{label} failed"))
        elif "ratio" in cell:
            title = f"{label} {cell['ratio']:.2f}x ±{cell['spread'] * 100:.0f}%"
            out.append(dot(place(cell["ratio"]), y, colours[system], title))
    return out


def draw(document):
    """The text of an SVG file."""
    table, machine = document["metrics"], document["machine"]
    systems = list(dict.fromkeys(s for m in table.values() for s in m["systems"]))
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(systems)}
    body, y, group = [], TOP + 4, None
    for name, metric in table.items():
        if group not in (None, metric["group"]):
            y += 5
            body.append(line(10, y - ROW / 2 - 2, LEFT + WIDTH + 24, y - ROW / 2 - 2, "#eeeeee"))
        group = metric["group"]
        body += row(y, name, metric, colours)
        y += ROW
    width, height = LEFT + WIDTH + 40, y + 10
    heading = (
        f"kernel {machine['kernel']}, {machine['cpus']} CPUs, {document['filesystem']}, "
        f"{document['rounds']} rounds, scale {document['scale']:g}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 22, "time (or memory) as a multiple of the kernel's overlayfs", font_size="15"),
        text(LEFT, 36, heading, fill="#555555"),
        *legend(colours),
        *grid(y - ROW / 2),
        *body,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
