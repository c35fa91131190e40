"""The page of a report in Chromium, without a network: it shows, it needs nothing beside it, and foreign text stays text."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxscore.report.headline import headline
from proxscore.report.page import number, page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> $x_{2}$ &amp; {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """A page of an offline browser; its list ``said`` has dialogs, errors, and requests for anything but the file."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    shown = context.new_page()
    shown.said = []
    shown.on("dialog", lambda dialog: (shown.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    shown.on("pageerror", lambda error: shown.said.append(f"error {error}"))
    shown.on("console", lambda message: shown.said.append(f"console {message.text}"))
    shown.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else shown.said.append(request.url),
    )
    yield shown
    context.close()


def test_the_page_opens_offline_with_all_figures_and_numbers(
    opened: Any, record: dict[str, Any], report_folder: Path
) -> None:
    opened.goto(f"file://{report_folder / 'report.html'}")
    assert opened.said == []
    headings = opened.locator("h2").all_inner_texts()
    assert headings == [
        "On images like those of training",
        "On corrupted images",
        "On images of other kinds",
        "If doubtful images go to a person",
        "Sets of classes with a guarantee",
        "What a prediction costs",
        "How this was made",
    ]
    sentences = [item.inner_text() for item in opened.locator("ul.headline li").all()]
    assert len(sentences) == len(record["headline"])
    for shown, said in zip(sentences, record["headline"], strict=True):
        assert said["text"] in " ".join(shown.split())
    figures = opened.locator("img")
    assert figures.count() == 4 + len(record["out_of_distribution"])
    assert all(figures.evaluate_all("images => images.map(image => image.complete && image.naturalWidth > 100)"))
    assert all(figures.evaluate_all("images => images.map(image => image.alt.length > 5)"))
    row = opened.locator("tr", has_text="ECE, all classes").first.inner_text()
    assert number(record["in_distribution"]["metrics"]["ece_all_classes"]) in row
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_names_of_classes_and_files_are_text_and_nothing_else(
    opened: Any, record: dict[str, Any], tmp_path: Path
) -> None:
    hostile = copy.deepcopy(record)
    hostile["in_distribution"]["classes"][0]["class"] = HOSTILE
    hostile["in_distribution"]["classes"][0]["recall"] = 0.0  # the hardest: named at the top
    hostile["out_of_distribution"][0]["name"] = HOSTILE
    hostile["command"] = hostile["posterior"] = hostile["title"] = HOSTILE
    hostile["headline"] = [vars(sentence) for sentence in headline(hostile, [f"warning    {HOSTILE}"])]
    (tmp_path / "report.html").write_text(page(hostile))
    opened.goto(f"file://{tmp_path / 'report.html'}")
    assert opened.said == []
    assert opened.locator("script, iframe, object, embed, link").count() == 0
    assert opened.locator("h1").inner_text() == f"What can be trusted: {HOSTILE}"
    assert opened.locator("td", has_text=HOSTILE).first.inner_text() == HOSTILE
    assert opened.locator("h3", has_text=HOSTILE).count() == 1
    assert opened.locator("img").count() == 4 + len(record["out_of_distribution"])


def test_a_thousand_classes_fold_away(opened: Any, record: dict[str, Any], tmp_path: Path) -> None:
    many = copy.deepcopy(record)
    inside, sets = many["in_distribution"], many["prediction_sets"]["methods"]
    inside["classes"] = [inside["classes"][place % 10] | {"class": f"class {place}"} for place in range(1000)]
    for found in sets.values():
        for key in ("coverage_by_class", "coverage_standard_error_by_class"):
            found[key] = found[key] * 100
    (tmp_path / "report.html").write_text(page(many))
    opened.goto(f"file://{tmp_path / 'report.html'}")
    assert opened.locator("summary", has_text="960 more classes").count() == 1
    assert opened.locator("tr:visible").count() < 200


def test_what_is_no_number_is_a_dash() -> None:
    assert [number(value, 2) for value in (None, float("nan"), float("inf"), 1234.567)] == ["–", "–", "∞", "1,234.57"]
