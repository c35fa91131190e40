"""Pages: their links lead somewhere, what they name exists, and each is shorter than what it explains."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
LONGEST = 180  # lines of the README
#: Pages that are linked before they are written; a page that is there must not be named here.
#: What a reader of the README looks for, and the one page that has it.
PATHS = {
    "the formula": "platform/proxscore/inference/README.md",
    "a new method": "platform/proxscore/methods/README.md#to-add-one",
    "a new data set": "platform/proxscore/vision/sources/README.md#to-add-one",
    "a study's table": "jobs/studies/compare_fashion_mnist/README.md",
}

FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def pages() -> list[str]:
    """All pages, by their path in the repository."""
    places = [REPOSITORY / name for name in ("jobs", "platform", "tests")]
    found = [page for place in places for page in place.rglob("README.md") if not hidden(page)]
    return ["README.md", *sorted(str(page.relative_to(REPOSITORY)) for page in found)]


def hidden(page: Path) -> bool:
    return any(part.startswith(".") for part in page.relative_to(REPOSITORY).parts)


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("](", "] ("), FENCE.sub("", text))


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (anchor := slug if number == 0 else f"{slug}-{number}") in anchors:
            number += 1
        anchors.add(anchor)
    return anchors


def broken(page: Path, root: Path) -> Iterator[str]:
    """The links of a page that lead nowhere."""
    for link in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue  # a web page
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if not target.is_relative_to(root):
            yield f"{link}: outside the repository"
        elif not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in headings(target.read_text()):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_a_file_or_a_heading(page: str) -> None:
    assert list(broken(REPOSITORY / page, REPOSITORY)) == []


@pytest.mark.parametrize(
    "link", ["gone.md", "other.md#gone", "#gone", "../outside.md", "folder/gone.png", "other.md#one-2"]
)
def test_a_link_that_leads_nowhere_is_found(link: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# One\n\n## One\n\n```\n# gone\n```\n")
    page = tmp_path / "README.md"
    good = "[a](other.md#one) [b](other.md#one-1) ![c](folder) [d](#here-it-is-or-not) [e](https://example.org/gone)"
    page.write_text(f"# Here it is, or *not*\n\n{good}\n\n```\n[code](gone.md)\n```\n\n`x[0](gone.md)`\n")
    assert list(broken(page, tmp_path)) == []
    page.write_text(f"{page.read_text()}\n[f]({link})\n")
    assert [found.split(":")[0] for found in broken(page, tmp_path)] == [link]


@pytest.mark.parametrize("page", pages())
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = LINK.sub("", (REPOSITORY / page).read_text())
    named = {path.rstrip(".") for path in re.findall(r"(?<![\w/.-])(?:jobs|platform|tests)/[\w./-]*\w[\w./-]*", text)}
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", pages())
def test_the_python_of_a_page_is_python(page: str) -> None:
    for _, language, code in FENCE.findall((REPOSITORY / page).read_text()):
        if language == "python":
            compile(textwrap.dedent(code), page, "exec")
        elif language == "yaml":
            yaml.safe_load(code)


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("what", PATHS)
def test_the_readme_leads_to_what_a_reader_looks_for(what: str) -> None:
    assert PATHS[what] in LINK.findall(prose((REPOSITORY / "README.md").read_text()))


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("platform/")])
def test_a_page_is_shorter_than_the_code_beside_it(page: str) -> None:
    beside = (REPOSITORY / page).parent.rglob("*")
    code = [file for file in beside if file.suffix in (".py", ".yaml") or file.name == "Dockerfile"]
    assert len((REPOSITORY / page).read_text()) < sum(len(file.read_text()) for file in code)


@pytest.mark.parametrize(
    "study", sorted(path.name for path in (REPOSITORY / "jobs" / "studies").iterdir() if path.is_dir())
)
def test_a_study_has_its_command_and_its_results_on_its_page(study: str) -> None:
    text = (REPOSITORY / "jobs" / "studies" / study / "README.md").read_text()
    assert re.findall(r"^## (.+)", text, flags=re.MULTILINE)[:3] == ["Command", "Results", "What was found"]
    assert "\n|---" in text
    [command] = [code for _, _, code in FENCE.findall(text.split("## Results")[0])]
    assert (REPOSITORY / "jobs" / "studies" / study / "run.py").exists() == (f"jobs/studies/{study}/run.py" in command)
    assert f"studies/{study}/README.md" in LINK.findall((REPOSITORY / "jobs" / "README.md").read_text())


def test_what_the_list_of_fast_tests_names_exists() -> None:
    named = [
        line.split("=")[-1] for line in (REPOSITORY / "tests" / "fast.txt").read_text().split() if "tests/" in line
    ]
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_the_hooks_before_a_commit_are_the_linters_of_ci() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    ci = (REPOSITORY / ".ci" / "run").read_text()
    linters = re.findall(r'^check "[^"$]+" (\.venv/bin/.+)$', ci, flags=re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == linters
