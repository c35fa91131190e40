"""Lines of progress: what is written is read back, on a terminal they are a bar in place, in a log there are few."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from proxscore.terminal import Progress, duration, lines
from proxscore.terminal.lines import Lines

ABOUT = (
    "2 min 10 s left",
    "NLL 1.319",
    "validation NLL 1.558 ECE 0.316",
    "28.2 steps/s",
    "data 1% forward+backward 66%",
)


class Clock:
    """Seconds, as a test sets them."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(lines, "time", found)
    return found


def progress(step: int, label: str = "digits-adamw") -> Progress:
    return Progress(label, step, 1000, step / 100, ABOUT)


@pytest.mark.parametrize("about", [(), ABOUT[:1], ABOUT])
def test_a_line_is_read_back_to_what_was_written(about: tuple[str, ...]) -> None:
    written = Progress("digits-20261130-000604-proximal_score", 21, 84, 3.0, about)
    assert Progress.parse(f"{written}\n") == written
    assert not written.ended
    assert Progress("run-sgd", 84, 84, 12.0).ended


@pytest.mark.parametrize(
    "line",
    [
        "",
        "error: something · step 3/4",
        "run-adamw · the tracking server http://x is away: waiting up to 10 min 00 s for it",
        "Traceback (most recent call last):",
        "search 5/6 (1 failed) · 120 per hour",
        "a run · step 3/4 (epoch 1.0)",
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert Progress.parse(line) is None


def test_times_are_said_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.2, 59.4, 61, 3599, 3661)] == [
        *("0 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 01 min"),
    ]


def test_a_log_has_few_lines_of_progress_and_always_the_last(clock: Clock) -> None:
    out = io.StringIO()
    with Lines(Console(file=out)) as show:
        for step in range(1, 1001):  # a step per second
            clock.now += 1
            show(str(progress(step)))
            if step == 500:
                show("something else")
    printed = out.getvalue().splitlines()
    steps = [found.step for line in printed if (found := Progress.parse(line)) is not None]
    assert steps[0] == 1
    assert steps[-1] == 1000
    gaps = [later - earlier for earlier, later in pairwise(steps[:-1])]
    assert min(gaps) >= lines.PAUSE
    assert max(gaps) >= 0.9 * lines.SHARE * 1000  # fewer and fewer
    assert len(steps) < 60
    assert [line for line in printed if Progress.parse(line) is None] == ["something else"]


def test_trouble_its_end_and_steps_that_are_done_again_are_news_in_a_log(clock: Clock) -> None:
    out = io.StringIO()
    show = Lines(Console(file=out))
    away = "tracking server away for 3 s, 2 reports wait"
    for step, about in [(1, ()), (2, ()), (3, (away,)), (4, (away,)), (5, ()), (6, ()), (4, ()), (5, ())]:
        show(str(Progress("a-adamw", step, 100, 0.1, about)))
    steps = [found.step for line in out.getvalue().splitlines() if (found := Progress.parse(line)) is not None]
    assert steps == [1, 3, 5, 4]


def test_two_runs_at_once_are_both_in_a_log(clock: Clock) -> None:
    out = io.StringIO()
    show = Lines(Console(file=out))
    show(str(progress(1, "a-adamw")))
    show(str(progress(1, "b-adamw")))
    show(str(progress(2, "a-adamw")))
    assert [line.split(" ")[0] for line in out.getvalue().splitlines()] == ["a-adamw", "b-adamw"]


def test_a_terminal_has_a_bar_in_place_that_fits_and_then_the_last_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, legacy_windows=False)
    with Lines(console) as show:
        for step in (1, 400, 999):
            show(str(progress(step)))
            show._bars.refresh()  # type: ignore[union-attr]
        show("something else")
        show(str(progress(1000)))
        show("after it")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    bars = [piece for piece in re.split(r"[\r\n]", plain) if "/1000" in piece and Progress.parse(piece) is None]
    assert any("400/1000" in bar for bar in bars)
    assert all(len(bar) <= 80 for bar in bars)
    assert all("left · NLL 1.319" in bar for bar in bars)
    lasting = [piece.strip() for piece in re.split(r"[\r\n]", plain)]
    assert [line for line in lasting if line in ("something else", "after it")] == ["something else", "after it"]
    assert str(progress(1000)) in plain
    assert plain.index("something else") < plain.index(str(progress(1000))) < plain.index("after it")
    assert str(progress(400)) not in plain  # not a line of its own
    assert out.getvalue().count("\x1b[?25h") == out.getvalue().count("\x1b[?25l")  # the cursor is seen again


def test_markup_in_a_line_is_printed_as_it_is() -> None:
    out = io.StringIO()
    with Lines(Console(file=out, force_terminal=True, width=80)) as show:
        show(str(progress(1)))
        show("error: [bold]task.data.path[/bold] has [1, 2]")
    assert "error: [bold]task.data.path[/bold] has [1, 2]" in out.getvalue()


def test_of_the_processes_of_torchrun_the_first_one_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        out = io.StringIO()
        Lines(Console(file=out))("a line")
        printed[rank] = out.getvalue()
    assert printed == {"0": "a line\n", "1": ""}
