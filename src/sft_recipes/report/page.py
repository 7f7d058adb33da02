"""Pages and Markdown from templates, in which whatever a row, a label or a recipe holds comes out as text.

Pages open from the disk, ask the network for nothing and run nothing.
"""

import json
from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup, escape

from sft_recipes.report import table
from sft_recipes.terminal import count, duration, visible

# Each colour on a light and on a dark page. Those of charts are Okabe and Ito's, told apart by every kind of colour
# vision (https://jfly.uni-koeln.de/color/); charts never tell by colour alone.
COLOURS = {
    "ink": ("#1c1c1c", "#e6e6e6"),
    "paper": ("#ffffff", "#161616"),
    "faint": ("#666666", "#9c9c9c"),
    "rule": ("#dddddd", "#3a3a3a"),
    "tuned": ("#0072b2", "#56b4e9"),
    "earlier": ("#008560", "#2fc79c"),
    "base": ("#d55e00", "#e69f00"),
    "trained": ("#0a5c2b", "#9be7b4"),
    "trained-paper": ("#dff5e5", "#12351f"),
    "lost": ("#aa1111", "#ff8a80"),
}


def html(template: str, **values: Any) -> str:
    """A whole page."""
    return _HTML.get_template(template).render(values)


def markdown(template: str, **values: Any) -> str:
    """A Markdown document."""
    return _MARKDOWN.get_template(template).render(values)


def _as_html(value: Any) -> Any:
    """Anybody's text as HTML: escaped, and what does not print made visible."""
    return value if isinstance(value, Markup) else escape(visible(table.shown(value)))


def _as_markdown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(table.markdown_text(value))  # noqa: S704, escaped there


def _environment(finalize: Callable[[Any], Any]) -> jinja2.Environment:
    """Templates in which `finalize` makes text of every value that is no markup of ours."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("sft_recipes.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    made.globals |= {"colours": COLOURS, "number": table.number}
    made.filters |= {"duration": duration, "number_of": count, "markdown": _markdown_table, "python": _python}
    made.tests["estimate"] = lambda cell: isinstance(cell, table.Estimate)
    made.tests["code"] = lambda cell: isinstance(cell, table.Code)
    return made


def _markdown_table(of: table.Table) -> Markup:
    return Markup(table.markdown(of))  # noqa: S704, every cell is escaped there


def _python(value: Any) -> Markup:
    """A value as it is written in Python, for a block of code."""
    return Markup(json.dumps(value) if isinstance(value, str) else repr(value))  # noqa: S704


_HTML = _environment(_as_html)
_MARKDOWN = _environment(_as_markdown)
