"""The page of a report: one HTML file that needs nothing beside it, and runs nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2

from proxscore.report.figures import figures
from proxscore.report.headline import percent, spread

TEMPLATE = "page.html.j2"
MANY_CLASSES = 40  # beyond, a table shows the hardest ones, and the rest folds away
SCORE_NAMES = {
    "maximum_probability": "maximum probability",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "energy": "energy",
}


def page(record: dict[str, Any]) -> str:
    """The HTML of what ``report.json`` holds. Names of classes, files and commands are foreign text: all is escaped.

    Args:
        record: the report's results and what describes them; see :mod:`proxscore.report.job`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": _percent, "signed": signed}
    classes = sorted(record["in_distribution"]["classes"], key=lambda each: (each["count"] == 0, _recall(each)))
    return environment.get_template(TEMPLATE).render(
        record=record,
        figures=figures(record),
        classes=classes[:MANY_CLASSES] if len(classes) > MANY_CLASSES else record["in_distribution"]["classes"],
        more_classes=classes[MANY_CLASSES:] if len(classes) > MANY_CLASSES else [],
        single_name=_single(record["in_distribution"].get("single")),
        score_names=SCORE_NAMES,
        spread=spread,
    )


def _single(single: dict[str, Any] | None) -> str:
    """What predictions without draws are called: the mean weights, or one member of a set of samples."""
    if single is None:
        return ""
    return "one member" if single["called"] == "member" else f"{single['called']} weights"


def _recall(each: dict[str, Any]) -> float:
    return each["recall"] if each["count"] else math.inf


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: so many decimals; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else percent(value)
