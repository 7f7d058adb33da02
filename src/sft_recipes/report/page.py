"""Pages and Markdown from templates, in which whatever a row, a label or a recipe holds comes out as text.

Pages open from the disk, ask the network for nothing, and run nothing but our own script for filtering rows.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from sft_recipes.evaluate.terms import MEANINGS, explained
from sft_recipes.report import table
from sft_recipes.terminal import count, duration, visible

# Each colour on a light and on a dark page. Those of charts are Okabe and Ito's, told apart by every kind of colour
# vision (https://jfly.uni-koeln.de/color/); charts never tell by colour alone.
COLOURS = {
    "ink": ("#1c1c1c", "#e6e6e6"),
    "paper": ("#ffffff", "#161616"),
    "faint": ("#666666", "#9c9c9c"),
    "rule": ("#dddddd", "#3a3a3a"),
    "shadow": ("#0000004d", "#ffffff59"),
    "tuned": ("#0072b2", "#56b4e9"),
    "earlier": ("#008560", "#2fc79c"),
    "base": ("#d55e00", "#e69f00"),
    "trained": ("#0a5c2b", "#9be7b4"),
    "trained-paper": ("#dff5e5", "#12351f"),
    "lost": ("#aa1111", "#ff8a80"),
}


def html(template: str, **values: Any) -> str:
    """A whole page; with `browser`, of `rows.browser`, its script runs, and the page's policy allows no other."""
    script = resources.files(__package__).joinpath("templates/rows.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ours = {"script": Markup(script), "script_hash": digest}  # noqa: S704, our own file
    return _HTML.get_template(template).render({"browser": None, **ours, **values})


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
    made.globals |= {"colours": COLOURS, "number": table.number, "meaning": lambda name: MEANINGS.get(explained(name))}
    made.filters |= {"duration": duration, "number_of": count, "markdown": _markdown_table, "python": _python}
    made.filters |= {"with_contents": _with_contents, "used_terms": _used_terms, "numbered": enumerate, "json": _json}
    made.tests["estimate"] = lambda cell: isinstance(cell, table.Estimate)
    made.tests["code"] = lambda cell: isinstance(cell, table.Code)
    return made


def _with_contents(sections: str) -> Markup:
    """Sections with an anchor for each `<h2>`, after a list of them; what others wrote is escaped in them already."""
    entries: dict[str, str] = {}

    def anchored(found: re.Match[str]) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", found[1].lower()).strip("-")
        entries[name] = found[1]
        return f'<h2 id="{name}">{found[1]}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", anchored, sections, flags=re.DOTALL)
    listed = " ".join(f'<a href="#{name}">{title}</a>' for name, title in entries.items())
    return Markup(f'<nav aria-label="Contents">{listed}</nav>\n{body}')  # noqa: S704, see above


def _used_terms(sections: str) -> dict[str, str]:
    """Of the terms that are explained, those that sections mark as such, with what they mean."""
    used = {explained(name) for name in re.findall(r"<abbr [^>]*>(.*?)</abbr>", sections)}
    return {term: meaning for term, meaning in MEANINGS.items() if term in used}


def _json(data: Any) -> Markup:
    """JSON to stand in an element `script`, which only `<` could end."""
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(written.replace("<", "\\u003c"))  # noqa: S704


def _markdown_table(of: table.Table) -> Markup:
    return Markup(table.markdown(of))  # noqa: S704, every cell is escaped there


def _python(value: Any) -> Markup:
    """A value as it is written in Python, for a block of code."""
    return Markup(json.dumps(value) if isinstance(value, str) else repr(value))  # noqa: S704


_HTML = _environment(_as_html)
_MARKDOWN = _environment(_as_markdown)
