"""Pages that open from the disk, ask the network for nothing and run nothing: frame, style, text and tables."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft_recipes.terminal import visible

# Each colour on a light and on a dark page. Those of charts are Okabe and Ito's, told apart by every kind of colour
# vision (https://jfly.uni-koeln.de/color/); charts never tell by colour alone.
COLOURS = {
    "ink": ("#1c1c1c", "#e6e6e6"),
    "paper": ("#ffffff", "#161616"),
    "faint": ("#666666", "#9c9c9c"),
    "rule": ("#dddddd", "#3a3a3a"),
    "tuned": ("#0072b2", "#56b4e9"),
    "base": ("#d55e00", "#e69f00"),
}
DASH = "&ndash;"
"""Where there is no value."""

_STYLE = """\
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.1rem; } h2 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .3rem; }
pre, code { font: 13px/1.55 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; border: 1px solid var(--rule); border-radius: 4px; padding: .7rem; margin: 0; }
"""

# What a page with tables and charts has beyond a preview.
SHEET = """\
h1 { font-size: 1.25rem; margin: 0 0 .3rem; }
h2 { margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: .9rem; font-weight: 600; margin: 1.3rem 0 .1rem; }
p { margin: .3rem 0; max-width: 48rem; } b { font-weight: 600; } b, code, td, th { unicode-bidi: isolate; }
small, caption, .faint { color: var(--faint); } caption, .faint, .key { font-size: 12.5px; }
.verdict { margin: 1rem 0; padding: .1rem 0 .1rem .9rem; border-left: 4px solid var(--faint); }
.verdict.better { border-color: var(--tuned); } .verdict.worse { border-color: var(--base); }
.verdict > p { font-size: 1.05rem; } .verdict ul { font-size: 13.5px; margin: .2rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: 13px; line-height: 1.4; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .2rem; } tbody tr { border-top: 1px solid var(--rule); }
th { font-weight: 500; text-align: left; } thead th { color: var(--faint); vertical-align: bottom; }
td, th { padding: .25rem 1.1rem .25rem 0; vertical-align: top; } td:last-child, th:last-child { padding-right: 0; }
td small, td code { font-size: 11.5px; } td small, td code, th code { white-space: nowrap; }
td p { margin: .2rem 0; min-width: 14rem; }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; } .numbers tbody th { min-width: 5rem; }
.stacked small { display: block; line-height: 1.2; } .stacked tbody th { min-width: 8rem; }
.matrix td { min-width: 2rem; padding: .25rem .35rem; text-align: right; print-color-adjust: exact; }
.matrix thead th + th { writing-mode: vertical-rl; transform: rotate(180deg); padding: .3rem .35rem; max-height: 9rem;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem; }
.side > * { min-width: 0; } figure { margin: .6rem 0; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif; }
.tuned { color: var(--tuned); } .base { color: var(--base); }
.row { margin: .7rem 0; } .row > p { margin: 0; max-width: none; font-size: 13px; }
.row dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0; } dd { margin: 0; }
.row pre { border: 0; border-left: 2px solid var(--rule); border-radius: 0; padding: 0 0 0 .7rem; }
summary { cursor: pointer; font-size: 13px; }
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } td, th { padding-right: .6rem; }
  table, table code, caption, .faint, pre { font-size: 8pt; } td small { font-size: 7pt; }
  h2, h3, caption, summary { break-after: avoid; } tr, figure, .matrix, .verdict, .row { break-inside: avoid; }
  .side { grid-template-columns: 1fr 1fr; gap: 0 1rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def document(title: str, body: str, style: str = SHEET) -> str:
    """A whole page; `title` is text, `body` and `style` are HTML and CSS."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{_STYLE}{style}</style>
{body}
</html>
"""


def text(value: Any, limit: int | None = None) -> str:
    """Anybody's text as HTML: escaped, what does not print made visible, cut after `limit` characters, saying so."""
    whole = str(value)
    shown = html.escape(visible(whole[:limit]))
    if limit is None or len(whole) <= limit:
        return shown
    return f'{shown}<span class="faint"> … {len(whole) - limit:,} more characters</span>'


def number(value: float | None, sign: str = "") -> str:
    """A figure with three decimals as HTML; `sign` is `+` where a plus is to be shown."""
    return DASH if value is None else f"{value:{sign}.3f}".replace("-", "&minus;")


def estimate(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """A value with its interval as HTML; `found` has `value`, `low` and `high`."""
    if found is None:
        return DASH
    value, low, high = (number(found[key], sign) for key in ("value", "low", "high"))
    return value if found["low"] is None else f"{value} <small>[{low}, {high}]</small>"


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers", most: int = 200
) -> str:
    """A table whose first column names its rows; nothing if there are none.

    Args:
        caption: what it shows, as text.
        header: one name a column, as HTML; empty for no header.
        rows: cells as HTML.
        kind: `numbers` (`numbers stacked` for intervals below their values), `words`, or `matrix`, whose cells bring
            their own tags.
        most: rows that are shown; how many more there are is said below.
    """
    rows = list(rows)
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    lines = []
    for first, *rest in rows[:most]:
        cells = rest if kind == "matrix" else [f"<td>{cell}</td>" for cell in rest]
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>')
    more = f'<p class="faint">{len(rows) - most:,} more are not shown.</p>' if len(rows) > most else ""
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{text(caption)}</caption>'
        f"{head and f'<thead><tr>{head}</tr></thead>'}<tbody>{''.join(lines)}</tbody></table>{more}</div>"
        if rows
        else ""
    )


def pairs(caption: str, values: Iterable[tuple[str, str]]) -> str:
    """A table of texts by name."""
    return table(caption, [], [[text(name), text(value)] for name, value in values], "words")


def side(parts: Iterable[str]) -> str:
    """Parts beside each other where there is room; each is HTML, an SVG becomes a figure."""
    return f'<div class="side">{"".join(f"<figure>{p}</figure>" if p.startswith("<svg") else p for p in parts)}</div>'


def folded(summary: str, content: str) -> str:
    """What few readers look for, folded on a screen and open on paper; `summary` is text."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"
