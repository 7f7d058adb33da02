"""The charts of a run, by matplotlib: as SVG inside a page, in the page's own colours, or as PNG."""

import io
import itertools
import json
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from sft_recipes.environment import importable_backend
from sft_recipes.files import replacing
from sft_recipes.report.page import COLOURS
from sft_recipes.report.table import Estimate
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, visible

INK, PAPER, FAINT, RULE = (COLOURS[name][0] for name in ("ink", "paper", "faint", "rule"))
TUNED, EARLIER, BASE = (COLOURS[name][0] for name in ("tuned", "earlier", "base"))
# What tells the models and everything else apart, besides the colour.
COLOUR = {"tuned": TUNED, "earlier": EARLIER, "base": BASE, "other": FAINT}
# Of several runs: the colours that both kinds of page have, and as many kinds of line times as many.
SEVERAL = (TUNED, BASE, EARLIER, INK)
DASHES = ("-", "--", ":")
MARKER = {"tuned": "o", "earlier": "^", "base": "D", "other": "s"}
# Points of a curve, about two for each pixel that it is wide on a page.
MOST_POINTS = 1000
# Of a curve without marks, so many points say their value.
MOST_HOVERS = 60
# Before the texts of the points of a line, in its id.
HOVER = "hover:"
WIDTH = 4.4
"""Of a chart on a page, in inches; two stand beside each other."""

_SETTINGS: dict[Any, Any] = {
    "font.size": 8.5,
    # The page names its own; a list of ten in each label is most of a chart.
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # A label is anybody's text, no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
}


@contextmanager
def figure(
    rows: int, columns: int, size: tuple[float, float], salt: str = "", **settings: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` inches in our style and its axes, with `settings` as `Figure.subplots` takes them.

    The ids in an SVG follow from `salt`, so that the same chart is the same text.
    """
    importable_backend()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser has the letters that matplotlib's own font, which only measures here, has not.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn, drawn.subplots(rows, columns, **settings)


def svg(name: str, label: str, draw: Callable[[Any], None], size: tuple[float, float] = (WIDTH, 2.2)) -> Markup:
    """One chart as an SVG element to stand in a page.

    Args:
        name: of the chart, unique in its page.
        label: what it shows, for those who cannot see it.
        size: in inches; on the page only the ratio of the sides and to the letters is left of it.
    """
    buffer = io.StringIO()
    with figure(1, 1, size, salt=name) as (drawn, axes):
        draw(axes)
        drawn.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314, drawn above
    # Its style is that of the page.
    root.remove(root[0])
    for element in root.iter():
        element.tag = _without_namespace(element.tag)
        element.text, element.tail = (text and text.strip() and text for text in (element.text, element.tail))
    for element in [*root.iter()]:
        _say_on_hover(element)
        attributes = {_without_namespace(key): _in_colours_of_page(value) for key, value in element.attrib.items()}
        # An id that nothing refers to is `axes_1` in every chart; the others are hashes of the salt.
        element.attrib = {key: value for key, value in attributes.items() if key != "id" or "_" not in value}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": visible(label)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704, serialised, and so escaped


def hover(line: Any, texts: Sequence[str]) -> None:
    """Have an SVG say a text at each point of a line, or one text on the whole of it, when it is pointed at."""
    line.set_gid(HOVER + json.dumps(texts))


def _say_on_hover(element: ElementTree.Element) -> None:
    """Put the texts that `hover` left in an id where browsers show them: a title in each mark, or in the line."""
    name = element.attrib.get("id", "")
    if not name.startswith(HOVER):
        return
    del element.attrib["id"]
    texts, marks = json.loads(name.removeprefix(HOVER)), [*element.iter("use")] or [element]
    # Marks outside of the chart are not drawn, and which they were is not known.
    for mark, text in zip(marks, texts, strict=True) if len(marks) == len(texts) else ():
        title = ElementTree.Element("title")
        title.text = visible(text)
        mark.insert(0, title)
        if "fill-opacity: 0" in mark.attrib.get("style", ""):
            mark.attrib["style"] = "opacity: 0"


def _without_namespace(name: str) -> str:
    """A name as HTML has it."""
    return name.rpartition("}")[2]


def _in_colours_of_page(value: str) -> str:
    for name, (light, _) in COLOURS.items():
        value = value.replace(f": {light}", f": var(--{name})")
    return " ".join(value.split())


def curve(axes: Any, log: Sequence[Mapping[str, Any]], key: str, title: str, held_out: str | None = None) -> None:
    """What the trainer logged under `key` over steps, and what evaluations logged under `held_out`."""
    _line(axes, *_points(log, key), "training", color=TUNED)
    if held_out and any(held_out in entry for entry in log):
        _marked(axes, *_points(log, held_out), "eval loss", color=BASE)
        axes.legend()
    _over_steps(axes, [log], title)


def curves(axes: Any, logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str) -> None:
    """What several runs logged under `key` over steps, by the name of the run, told apart by colour and dashes."""
    for (name, log), colour, dashes in zip(logs.items(), itertools.cycle(SEVERAL), itertools.cycle(DASHES)):
        _line(axes, *_points(log, key), name, label=short(name), color=colour, linestyle=dashes)
    axes.legend()
    _over_steps(axes, logs.values(), title)


def _line(axes: Any, steps: Sequence[int], values: Sequence[float], name: str, **style: Any) -> None:
    """A curve without marks, and points that only pointing at them shows; one that is alone is marked."""
    mark = "o" if len(steps) == 1 else ""
    axes.plot(steps, values, **{"linewidth": 1.2, "label": name, "marker": mark, "markersize": 3.5, **style})
    every = math.ceil(len(steps) / MOST_HOVERS) or 1
    (unseen,) = axes.plot(steps[::every], values[::every], linestyle="none", marker="o", markersize=6, alpha=0)
    hover(unseen, _at_steps(name, steps[::every], values[::every]))


def _marked(axes: Any, steps: Sequence[int], values: Sequence[float], name: str, color: str) -> None:
    style = {"color": color, "marker": "o", "markersize": 3.5, "linestyle": "--", "clip_on": False}
    (line,) = axes.plot(steps, values, label=name, **style)
    hover(line, _at_steps(name, steps, values))


def _at_steps(name: str, steps: Sequence[int], values: Sequence[float]) -> list[str]:
    return [f"{name}, step {step:,}: {value:.4g}" for step, value in zip(steps, values, strict=True)]


def _over_steps(axes: Any, logs: Iterable[Sequence[Mapping[str, Any]]], title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("optimizer step")
    axes.set_xlim(0, max((entry["step"] for log in logs for entry in log), default=1) or 1)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")


def _points(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values; of many, the least and the greatest of each stretch, so that spikes stay."""
    points = [(entry["step"], entry[key]) for entry in log if key in entry and math.isfinite(entry[key])]
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    if stretch > 2:
        parts = (points[start : start + stretch] for start in range(0, len(points), stretch))
        value = operator.itemgetter(1)
        points = [point for part in parts for point in sorted({min(part, key=value), max(part, key=value)})]
    return [step for step, _ in points], [value for _, value in points]


def intervals(
    axes: Any, rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, Any] | None]]]], title: str
) -> None:
    """Estimates between 0 and 1 as points with their intervals.

    Args:
        rows: label and estimates of one line, each with its role (a key of `MARKER`); None where there is none.
    """
    for number, (label, estimates) in enumerate(rows):
        for place, (role, estimate) in enumerate(estimates):
            if estimate is None or estimate["value"] is None:
                continue
            y = number + 0.3 * (place - (len(estimates) - 1) / 2)
            whose = f"{label}, {role}" if len(estimates) > 1 else label
            if estimate["low"] is not None:
                axes.plot([estimate["low"], estimate["high"]], [y, y], color=COLOUR[role], linewidth=1.4)
            (point,) = axes.plot([estimate["value"]], [y], **_point(role))
            hover(point, [f"{whose}: {title} {Estimate.of(estimate)}"])
    axes.set_yticks(range(len(rows)), [short(label) for label, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(title)
    _from_0_to_1(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def reliability(axes: Any, bins: Sequence[Mapping[str, Any]], role: str, title: str) -> None:
    """Accuracy over mean confidence for each bin with rows, with intervals; on the diagonal a model is calibrated."""
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    for each in bins:
        axes.plot([each["confidence"]] * 2, each["interval"], color=COLOUR[role], linewidth=1.2)
    (points,) = axes.plot([each["confidence"] for each in bins], [each["accuracy"] for each in bins], **_point(role))
    texts = [
        f"{count(each['n'], 'row')} of mean confidence {each['confidence']:.3f}: accuracy "
        f"{Estimate(each['accuracy'], *each['interval'])}"
        for each in bins
    ]
    hover(points, texts)
    axes.set_xlabel("mean confidence")
    axes.set_title(title)
    _from_0_to_1(axes, "x")
    _from_0_to_1(axes, "y")


def slice_of(
    axes: Any,
    points: Sequence[tuple[str, float, float, str]],
    title: str,
    ticks: Sequence[str] | None = None,
    *,
    log: bool = False,
) -> None:
    """Figures over one value.

    Args:
        points: each with its role (a key of `MARKER`), place, height, and what it says when it is pointed at.
        ticks: names of the places 0, 1 and so on; without them places are numbers.
        log: whether these are on a logarithmic scale.
    """
    for role, x, y, text in points:
        (point,) = axes.plot([x], [y], **_point(role))
        hover(point, [text])
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    if ticks is None:
        # By itself a logarithmic scale writes formulas.
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xticks(range(len(ticks)), [short(tick, 60 // len(ticks)) for tick in ticks])
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_title(title)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _point(role: str) -> dict[str, Any]:
    """Filled for the tuned model, hollow for everything it is compared with."""
    inside = TUNED if role == "tuned" else PAPER
    style = {"marker": MARKER[role], "markerfacecolor": inside, "markeredgecolor": COLOUR[role]}
    return {**style, "markersize": 4.5, "linestyle": "none"}


def _from_0_to_1(axes: Any, axis: str) -> None:
    getattr(axes, f"set_{axis}lim")(-0.02, 1.02)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    getattr(axes, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis=axis)


def short(label: str, most: int = 28) -> str:
    """A label as a chart has room for it."""
    shown = visible(label).replace("\n", "")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def draw_loss(run: Run) -> None:
    """Write loss.png: training and eval loss over steps, and the learning rate below them."""
    log = run.log_entries()
    with figure(2, 1, (6, 3.6), sharex=True, height_ratios=(3, 1)) as (drawn, (loss, rate)):
        curve(loss, log, "loss", f"{run.name}: loss, nats per supervised token", "eval_loss")
        curve(rate, log, "learning_rate", "learning rate")
        loss.set_xlabel(None)
        with replacing(run.curve) as temporary:
            drawn.savefig(temporary, format="png", dpi=160, facecolor=PAPER)
