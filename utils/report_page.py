"""The frame of report.html: style, script and the joining of sections into one file that opens from disk without a network.

plotly.js (MIT) comes from the installed plotly package and is written into the page once. Figures take their ink and grid from
the page's CSS variables and follow the reader's light or dark setting. Everything that is not a number is escaped.
"""
import html
import json
from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #ffffff; --ink: #1f2328; --soft: #626a73; --line: #dfe3e8;
        --accent: #2f6db5; --good: #23764b; --bad: #b23b3b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1b1f24; --ink: #e4e7ea; --soft: #9aa4ae; --line: #31373e; --accent: #79b0ea;
          --good: #6cc596; --bad: #ec8585; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 1.7rem; font-weight: 650; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; font-weight: 650; margin: 44px 0 10px; }
p, li { max-width: 78ch; }
.soft, figcaption, .protocol { color: var(--soft); font-size: 0.9rem; }
.protocol { margin: 4px 0 0; }
section { scroll-margin-top: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: 6px 16px 6px 12px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
td.number, th.number { text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); font-weight: 650; }
tr.group th { color: var(--soft); font-size: 0.8rem; font-weight: 600; padding-top: 16px; letter-spacing: 0.02em; }
.ci { color: var(--soft); font-size: 0.8rem; margin-left: 0.6em; }
.best { font-weight: 700; }
.good { color: var(--good); } .bad { color: var(--bad); }
.key { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.5em; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 20px; }
figure { margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
         padding: 10px 12px 12px; }
figcaption { padding: 4px 4px 0; }
.samples img { display: block; width: 168px; height: 168px; border-radius: 5px; }
.samples td { padding: 6px 8px; border: 0; font-size: 0.85rem; vertical-align: top; }
.samples th { border: 0; padding: 4px 8px; font-size: 0.85rem; }
.samples .name { max-width: 190px; overflow-wrap: anywhere; color: var(--soft); font-size: 0.78rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 78ch; }
@media (max-width: 640px) { dl { display: block; } dd { margin: 0 0 8px; } }
""".strip()

SCRIPT = """
const paint = () => {
  const css = getComputedStyle(document.documentElement), get = name => css.getPropertyValue(name).trim();
  const family = getComputedStyle(document.body).fontFamily, line = get('--line');
  for (const {id, figure} of figures) {
    const layout = structuredClone(figure.layout), scene = layout.scene || {};
    Object.assign(layout, {paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', autosize: true, uirevision: 1,
      font: {color: get('--ink'), size: 13, family}, hoverlabel: {font: {family}},
      modebar: {bgcolor: 'rgba(0,0,0,0)', color: get('--soft'), activecolor: get('--accent')}});
    for (const axis of [layout.xaxis, layout.yaxis, scene.xaxis, scene.yaxis, scene.zaxis].filter(Boolean))
      Object.assign(axis, {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true});
    Plotly.react(id, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: Boolean(layout.scene)});
  }
};
paint();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
""".strip()


class Page:
    """Collects sections in order; `html()` gives the whole file."""

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._figures: list[dict[str, Any]] = []

    def add(self, part: str) -> None:
        """Append ready-made html."""
        self._parts.append(part)

    def section(self, title: str, *parts: str) -> None:
        """Append a section of html parts under a heading."""
        self.add(f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>")

    def figure(self, figure: dict[str, Any], caption: str) -> str:
        """Html of a figure; its data go to the end of the page."""
        name = f"figure-{len(self._figures)}"
        self._figures.append({"id": name, "figure": figure})
        height = int(figure["layout"].get("height", 360))
        return (f'<figure><div id="{name}" style="height:{height}px"></div>'
                f"<figcaption>{text(caption)}</figcaption></figure>")

    def html(self) -> str:
        """The file's content. Only a page with figures carries plotly."""
        script = ""
        if self._figures:
            data = json.dumps(self._figures, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
            script = f"<script>{get_plotlyjs()}</script>\n<script>const figures = {data};\n{SCRIPT}</script>\n"
        return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
                f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(self.title)}</title>\n'
                f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{chr(10).join(self._parts)}\n</main>\n{script}</body>\n</html>\n")


def text(value: object) -> str:
    """Escaped for html."""
    return html.escape(str(value))


def paragraph(value: object, style: str = "") -> str:
    """A paragraph of escaped text."""
    return f'<p class="{style}">{text(value)}</p>' if style else f"<p>{text(value)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table of ready-made html cells; a row of one cell becomes a heading across all columns. First column left, rest right."""
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag}{"" if i == 0 or style else " class=number"}>{cell}</{tag}>' for i, cell in enumerate(row))

    body = "".join(f'<tr class="group"><th colspan="{len(head)}">{row[0]}</th></tr>' if len(row) == 1 else
                   f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (f'<div class="scroll"><table{f" class={style}" if style else ""}><thead><tr>{cells(head, "th")}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")
