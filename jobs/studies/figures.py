"""Figures of the studies, drawn from the tables of their pages.

python jobs/studies/figures.py [study ...]      # all, if none is named

Each shows numbers that stand in the README.md of its study, and is figure.png beside it. Ours is blue.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

FOLDER = Path(__file__).parent
OURS, OTHER = "#0072B2", "#555555"
COLOURS, STYLES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00"), ("-o", "--s", ":^")  # colours of Okabe and Ito
OTHERS = r"AdamW|MC dropout|Laplace|SWAG|ELBO|IVON|SG|BaM|GSM|theta|naive|ETS|no penalty|^no trust"
VARIANTS = ("default, pairs", "default, single", "no trust region, pairs", "no trust region, single")
NUMBER = re.compile(r"(-?\d*\.?\d+(?:e-?\d+)?)(?: ± (\d*\.?\d+))?(?: \((\d*\.?\d+)\))?")
POWERS = {f"10{sign}": f"1e{power}" for power, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
#: A cell: its row's name, its place, its number (none: not finite), and what stands behind ±.
Point = tuple[str, float, float, float]


class Panel(NamedTuple):
    """Columns, by label, of one of the page's tables; no label: each row is a line of its own."""

    table: int
    columns: dict[int, str]
    title: str
    log: bool = False
    name: int = 0  # column that names the rows
    x: int | None = None  # column of lines' x; none: it stands in the header
    bracket: bool = False  # what is shown stands in brackets


BATCHES = dict.fromkeys(range(1, 5), "")
BUDGETS = Panel(0, {5: "lowest", 6: "at the end"}, "validation NLL: lowest, end (hollow)")
TEST = Panel(0, {3: "AdamW", 4: "defaults"}, "test NLL")
KL = Panel(0, dict(enumerate(VARIANTS, 5)), "KL per dimension after 1,000 over D", x=0)
LARGEST = Panel(0, dict(enumerate(VARIANTS, 1)), "largest error in sds after 8 over D", x=0, bracket=True)
RATIO = "variance / exact, {} over batch"
FIGURES = {
    "budgets": [Panel(0, {3: "NLL"}, "NLL, test split"), BUDGETS],
    "compare_fashion_mnist": [Panel(0, {2: "NLL"}, "NLL"), Panel(0, {3: "ECE"}, "ECE")],
    "compare_forecasts": [Panel(0, {1: "CRPS"}, "CRPS, Taylor", True), Panel(1, {1: "CRPS"}, "CRPS, births")],
    "defaults": [Panel(0, {1: "AdamW", 2: "defaults"}, "validation NLL"), TEST],
    "finetune_shift": [Panel(0, {3: "NLL"}, "NLL, test images"), Panel(1, {2: "NLL"}, "NLL under shift")],
    "finetune_few": [Panel(0, {at: ""}, f"{what} over images", True, 1, 0) for at, what in ((4, "NLL"), (5, "ECE"))],
    "penalty_ablation": [Panel(0, {3: "NLL"}, "NLL")],
    "shifts": [Panel(0, {at: to}, f"sure and wrong: {to}") for at, to in ((5, "turned"), (7, "photographs"))],
    "stability": [KL, LARGEST],
    "unbiasedness": [Panel(at, BATCHES, RATIO.format(of), True) for at, of in ((1, "linear"), (2, "logistic"))],
}


def tables(study: str) -> list[list[list[str]]]:
    """Cells of all tables of a study's page, header first; an empty first cell repeats the one above."""
    text, found = (FOLDER / study / "README.md").read_text() + "\n", []
    for block in re.findall(r"^(\|.*\n)\|---.*\n((?:\|.*\n)+)", text.replace("**", ""), flags=re.MULTILINE):
        found.append([[cell.strip() for cell in line.split("|")[1:-1]] for line in "".join(block).splitlines()])
        for above, row in pairwise(found[-1]):
            row[0] = row[0] or above[0]
    return found


def number(cell: str, bracket: bool = False) -> tuple[float, float]:
    """A cell's number and what stands behind ±, or that in brackets."""
    found = NUMBER.match(POWERS.get(cell, cell.replace(",", "")))
    value, error, inner = found.groups() if found else (None, None, None)
    return (float(inner or "nan"), 0.0) if bracket else (float(value or "nan"), float(error or 0))


def series(study: str, panel: Panel) -> dict[str, list[Point]]:
    """What a panel shows: points by the label of their column, or by the name of their row."""
    header, *rows = tables(study)[panel.table]
    found: dict[str, list[Point]] = {}
    for place, row in enumerate(rows):
        for column, label in panel.columns.items():
            if row[column]:
                where = str(place) if label else re.sub(r"\D", "", header[column])
                x, _ = number(where if panel.x is None else row[panel.x])
                point = (row[panel.name], x, *number(row[column], panel.bracket))
                found.setdefault(label or row[panel.name], []).append(point)
    return found


def dots(axes: Axes, panel: Panel, shown: dict[str, list[Point]]) -> None:
    """Rows from top to bottom; a second column by its colour, or hollow."""
    coloured = bool(re.search(OTHERS, "".join(shown)))
    for which, (label, points) in enumerate(shown.items()):
        for name, x, y, error in points:
            colour = OTHER if re.search(OTHERS, f"{label} {name}") else OURS
            face = "white" if which and not coloured else colour
            axes.errorbar(y, x, xerr=error or None, fmt="o", c=colour, mfc=face, ms=5)
            if math.isnan(y):
                axes.text(0.02, x, "diverged", c=colour, va="center", transform=axes.get_yaxis_transform())
            if coloured and x == 0:
                axes.text(y, -0.4, label, c=colour, ha="right" if colour == OURS else "left")
    axes.set_yticks([point[1] for point in points], [point[0] for point in points])
    axes.set(ylim=(points[-1][1] + 0.6, -0.9), xlabel=panel.title, xscale="log" if panel.log else "linear")
    axes.grid(axis="y", alpha=0.3)


def lines(axes: Axes, panel: Panel, shown: dict[str, list[Point]]) -> None:
    """Lines over a logarithmic axis, named where they start."""
    title, across = panel.title.split(" over ")
    axes.set(title=title, xlabel=across, xscale="log", yscale="log" if panel.log else "linear")
    colours: dict[str, str] = {}
    for name, points in shown.items():
        which = sum(bool(re.search(OTHERS, one)) == bool(re.search(OTHERS, name)) for one in colours)
        colours[name] = COLOURS[which] if re.search(OTHERS, name) else OURS
        _, x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, error, fmt=STYLES[which if colours[name] == OURS else 0], c=colours[name], ms=4)
    ticks = sorted({point[1] for points in shown.values() for point in points})
    axes.set_xticks(ticks, [f"{x:,.0f}" if x < 1e4 else f"$10^{{{math.log10(x):.0f}}}$" for x in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    scale, above = axes.transScale + axes.transLimits, -1.0
    starts = {name: min(float(scale.transform(points[0][1:3])[1]), 1.0) for name, points in shown.items()}
    for name in sorted(starts, key=starts.__getitem__):
        above = max(starts[name], above + 0.07)
        axes.text(-0.03, above, name, ha="right", va="center", c=colours[name], transform=axes.transAxes)
    axes.yaxis.tick_right()


def draw(study: str) -> Figure:
    """A study's figure."""
    panels = FIGURES[study]
    kind = lines if panels[0].x is not None or "" in panels[0].columns.values() else dots
    height = 3.4 if kind is lines else 0.9 + 0.2 * len(tables(study)[0])
    figure = Figure(figsize=(9, height), dpi=100, layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        axes.spines[["top", "left" if kind is lines else "right"]].set_visible(False)
        kind(axes, panel, series(study, panel))
        if panel.log:
            axis, subs = (axes.yaxis, (1, 2, 5)) if kind is lines else (axes.xaxis, (1, 4))
            axis.set(major_locator=LogLocator(subs=subs), major_formatter="{x:g}", minor_formatter=NullFormatter())
        if kind is dots and panel is not panels[0] and panel.table == panels[0].table:
            axes.tick_params(labelleft=False)  # the same rows
    return figure


def digest(study: str) -> str:
    """Of what a figure shows; stands in the file, so that a test knows a figure that is not of its table."""
    return hashlib.sha256(repr([(panel, series(study, panel)) for panel in FIGURES[study]]).encode()).hexdigest()


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        draw(name).savefig(drawn := io.BytesIO())
        said = PngInfo()
        said.add_text("Description", digest(name))
        Image.open(drawn).convert("RGB").quantize(48).save(FOLDER / name / "figure.png", optimize=True, pnginfo=said)
