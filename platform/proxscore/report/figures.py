"""The figures of a report, as SVG. They hold no names of classes or files: those are text of the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BLUE, _RED, _GREY, _INK = "#3b6fb6", "#d9534f", "#8c9bb0", "#333333"
_LINES = ("#3b6fb6", "#d9534f", "#4c9f70", "#b07aa1", "#e08e2b", "#5aa9a3", "#8a6d3b")
_SIZES = 10  # the last size of a set with a bar of its own

Results = dict[str, Any]


def figures(results: Results) -> dict[str, str]:
    """All figures by name, as ``data:`` URIs. Those of out-of-distribution sets are ``outside_0``, ``outside_1``, ..."""
    found = {
        "reliability": _reliability(results["in_distribution"]["reliability"]),
        "shift": _shift(results["shift"]),
        "selective": _selective(results["selective"]),
        "sets": _sets(results["prediction_sets"]),
    }
    for place, each in enumerate(results["out_of_distribution"]):
        found[f"outside_{place}"] = _outside(each["histogram"])
    return {name: _uri(figure) for name, figure in found.items()}


def _uri(figure: Figure) -> str:
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "proxscore"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def _reliability(bins: Results) -> Figure:
    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"top_label": "the most probable class (ECE)", "all_classes": "all class probabilities (ece_all_classes)"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        counts = np.array(bins[name]["counts"], dtype=float)
        accuracy, confidence = (np.array(bins[name][key], dtype=float) for key in ("accuracy", "confidence"))
        edges = np.linspace(0, 1, len(counts) + 1)
        filled = counts > 0
        axes.bar(edges[:-1][filled], accuracy[filled], 1 / len(counts), align="edge", color=_BLUE, edgecolor="white")
        axes.plot(
            confidence[filled], accuracy[filled], "o", color=_INK, markersize=3.5, label="mean probability of the bin"
        )
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, label="perfect calibration")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="predicted probability", ylabel="how often it was so", title=title)
        _tidy(axes)
    panels[0].legend(loc="upper left", fontsize=8)
    return figure


def _shift(shift: Results) -> Figure:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE (top label)"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        start = shift["uncorrupted"][key]
        for color, (name, found) in zip(_LINES, shift["corruptions"].items(), strict=False):
            values = [start, *(each[key] for each in found["strengths"])]
            axes.plot(
                range(len(values)), values, "o-", color=color, markersize=3, linewidth=1.2, label=name.replace("_", " ")
            )
        mean = [start, *(each[key] for each in shift["mean"])]
        axes.plot(range(len(mean)), mean, color=_INK, linewidth=2.6, label="mean")
        axes.set(xlabel="strength of the corruption", ylabel=label, xticks=range(len(mean)))
        if key != "nll":
            axes.set_ylim(0, 1.02 if key == "accuracy" else None)
        _tidy(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _selective(selective: Results) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    curve = selective["curve"]
    axes.plot(curve["coverage"], curve["risk"], color=_BLUE, linewidth=2)
    axes.fill_between(curve["coverage"], curve["risk"], color=_BLUE, alpha=0.15)
    axes.plot(selective["coverage"], [1 - each for each in selective["accuracy"]], "o", color=_INK, markersize=4)
    axes.set(
        xlim=(0, 1.01),
        xlabel="coverage: share of the images that are answered",
        ylabel="risk: share of them answered wrongly",
    )
    axes.set_ylim(0, max(*curve["risk"], 0.01) * 1.1)
    _tidy(axes)
    return figure


def _sets(sets: Results) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = np.array([found["sizes"] for found in sets["methods"].values()], dtype=float)
    largest = int(np.flatnonzero(sizes.sum(0)).max())
    last = min(largest, _SIZES)
    shares = np.concatenate([sizes[:, :last], sizes[:, last:].sum(1, keepdims=True)], 1) / sizes.sum(1, keepdims=True)
    for place, (name, color) in enumerate(zip(sets["methods"], (_BLUE, _RED, _GREY), strict=True)):
        axes.bar(np.arange(last + 1) + 0.27 * (place - 1), shares[place], 0.27, color=color, label=name.upper())
    names = [str(size) for size in range(last + 1)]
    axes.set_xticks(range(last + 1), [*names[:-1], names[-1] + ("+" if largest > last else "")])
    axes.set(xlabel="classes in the set", ylabel="share of the images")
    axes.legend(fontsize=8)
    _tidy(axes)
    return figure


def _outside(histogram: Results) -> Figure:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    edges = np.array(histogram["edges"])
    for name, color, label in (("inside", _BLUE, "test images"), ("outside", _RED, "these images")):
        axes.stairs(histogram[name], edges, color=color, fill=True, alpha=0.35, label=label)
        axes.stairs(histogram[name], edges, color=color, linewidth=1.2)
    axes.set(xlim=(0, edges[-1]), xlabel="entropy of the prediction (nats)", ylabel="share of the images")
    axes.legend(fontsize=8)
    _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.title.set_fontsize(10)
