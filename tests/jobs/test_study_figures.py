"""Figures of the studies: each shows numbers that stand in the table of its page, and was drawn from them."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

STUDIES = Path(__file__).resolve().parents[2] / "jobs" / "studies"
FIGURES: dict[str, Any] = runpy.run_path(str(STUDIES / "figures.py"))  # leaves no __pycache__ among the studies
SHOWN = [(study, at) for study, panels in FIGURES["FIGURES"].items() for at in range(len(panels))]
POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def written(study: str) -> set[float]:
    """Every number that stands in the tables of a page."""
    rows = [line for line in (STUDIES / study / "README.md").read_text().splitlines() if line.startswith("|")]
    text = re.sub(r"(?<=\d),(?=\d{3})", "", "\n".join(rows))
    powers = {10.0 ** int(power.translate(POWERS)) for power in re.findall(r"10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)}
    return powers | {float(found) for found in re.findall(r"-?\d*\.?\d+(?:e-?\d+)?", text)}


@pytest.mark.parametrize(("study", "at"), SHOWN)
def test_what_a_figure_shows_stands_in_the_table(study: str, at: int) -> None:
    panel = FIGURES["FIGURES"][study][at]
    points = [point for line in FIGURES["series"](study, panel).values() for point in line]
    assert len(points) >= 3
    numbers = written(study)
    finite = [(y, error) for _, _, y, error in points if math.isfinite(y)]
    assert len(finite) >= 0.8 * len(points)
    assert {value for point in finite for value in point} <= numbers | {0.0}


@pytest.mark.parametrize(
    ("study", "at", "line", "name", "x", "y", "error"),
    [
        ("budgets", 1, "at the end", "AdamW, 0.002", 7, 0.5569, 0.0047),
        ("compare_fashion_mnist", 1, "ECE", "proximal score, wide, 0.016", 3, 0.0069, 0.001),
        ("compare_forecasts", 0, "CRPS", "ELBO, 0.002", 7, 1152, 65),
        ("compare_forecasts", 1, "CRPS", "theta, 7", 0, 9.75, 0),
        ("defaults", 0, "defaults", "CNN, digits", 4, 0.053, 0.014),
        ("finetune_few", 0, "AdamW, 0.003", "AdamW, 0.003", 5000, 0.354, 0.021),
        ("penalty_ablation", 0, "NLL", "forward KL, mean cosine", 5, 0.146, 0.025),
        ("shifts", 1, "photographs", "initial noise of 30 % (quickstart)", 6, 0.186, 0.058),
        ("stability", 0, "default, single", "10³", 1e3, 2.59, 0.02),
        ("stability", 1, "no trust region, pairs", "10⁷", 1e7, 39, 0),
        ("unbiasedness", 0, "GSM", "GSM", 20, 6e10, 0),
        ("unbiasedness", 1, "IVON, mean-field", "IVON, mean-field", 2000, 0.930, 0.001),
    ],
)
def test_a_number_of_the_page_is_shown_in_its_place(
    study: str, at: int, line: str, name: str, x: float, y: float, error: float
) -> None:
    assert (name, x, y, error) in FIGURES["series"](study, FIGURES["FIGURES"][study][at])[line]


@pytest.mark.parametrize("study", FIGURES["FIGURES"])
def test_the_file_was_drawn_from_the_table_and_stands_on_its_page(study: str) -> None:
    file = STUDIES / study / "figure.png"
    with Image.open(file) as image:
        assert image.info["Description"] == FIGURES["digest"](study), f"redraw it: jobs/studies/figures.py {study}"
    assert file.stat().st_size < 60_000
    assert "](figure.png)" in (STUDIES / study / "README.md").read_text()
    assert len(FIGURES["draw"](study).axes) == len(FIGURES["FIGURES"][study])


def test_every_page_that_names_a_figure_has_one() -> None:
    naming = {page.parent.name for page in STUDIES.glob("*/README.md") if "figure.png" in page.read_text()}
    assert naming == set(FIGURES["FIGURES"]) == {file.parent.name for file in STUDIES.glob("*/figure.png")}
