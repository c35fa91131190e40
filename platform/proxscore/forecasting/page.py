"""A page of fan charts: one HTML file that needs nothing beside it, and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib import rc_context

from proxscore.calibration.interval_coverage import coverage_by_horizon
from proxscore.forecasting.fans import LEVELS, Fan, fans, svg
from proxscore.forecasting.prediction import SeriesPrediction

TEMPLATE = "fans.html.j2"
SERIES = 200  # whose charts a page has
NAMED = 2000  # of the others that a page names
BY_LEVEL = ("_50", "_80", "_90", "_95")  # ends of the metrics of intervals

# What the search field does; without it the page shows all.
SCRIPT = """
const box = document.getElementById("find"), found = document.getElementById("found");
box.addEventListener("input", () => {
  const text = box.value.toLowerCase();
  let count = 0;
  for (const each of document.querySelectorAll("[data-name]")) {
    each.hidden = !each.dataset.name.includes(text);
    if (!each.hidden && each.tagName === "FIGURE") count += 1;
  }
  found.textContent = text ? count + " charts" : "";
});
"""


class FanPage:
    """Collects charts of the first series of many, and writes the page.

    Args:
        count: series that get a chart.
    """

    def __init__(self, count: int = SERIES) -> None:
        self.count = count
        self.fans: list[Fan] = []
        self.others: list[str] = []
        self.total = 0
        self._last: SeriesPrediction | None = None

    def add(self, prediction: SeriesPrediction) -> None:
        """Add the series of a prediction, which follow those before."""
        numbers = dict.fromkeys(prediction.predictive.targets[:, 2, 0].long().tolist())
        names, room = [prediction.series.series[number].id for number in numbers], self.count - len(self.fans)
        if room > 0:
            self.fans += fans(prediction, room)
        self.others += names[max(room, 0) :][: NAMED - len(self.others)]
        self.total += len(names)
        self._last = prediction

    def html(
        self,
        title: str,
        about: str,
        notes: Sequence[tuple[str, str]],
        metrics: Mapping[str, float] | None = None,
        by_horizon: dict[str, Any] | None = None,
    ) -> str:
        """The page. Names of series and titles are foreign text: all is escaped.

        Args:
            title: of the posterior.
            about: in a line below it.
            notes: tone (``bad`` or ``plain``) and text of what is to be known before the charts are trusted.
            metrics: of windows whose targets are known.
            by_horizon: their coverage.
        """
        assert self._last is not None
        served = self._last.served(LEVELS)
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        return environment.get_template(TEMPLATE).render(
            title=title,
            about=about,
            notes=notes,
            metrics={name: value for name, value in (metrics or {}).items() if not name.endswith(BY_LEVEL)},
            by_level=_by_level(metrics or {}),
            coverage=None if by_horizon is None else _uri(by_horizon),
            charts=[(fan.name, fan.bare, fan.unlike, Markup(svg(fan))) for fan in self.fans],
            others=self.others,
            unnamed=self.total - len(self.fans) - len(self.others),
            total=self.total,
            known=self._last.known,
            bands=[(level, level in served) for level in LEVELS],
            calibration=None if self._last.calibration is None else self._last.calibration.told,
            script=Markup(SCRIPT),
            digest=digest,
        )


def _by_level(metrics: Mapping[str, float]) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    """For each level its name, and coverage, width and Winkler score, each of the model's own and of calibrated intervals."""
    kinds = ("coverage", "width", "winkler")
    return [
        (f"{level}%", [(metrics.get(f"{kind}_{level}"), metrics.get(f"calibrated/{kind}_{level}")) for kind in kinds])
        for level in ("50", "80", "90", "95")
        if f"coverage_{level}" in metrics
    ]


def _uri(by_horizon: dict[str, Any]) -> str:
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "proxscore"}):
        coverage_by_horizon(by_horizon).savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()
