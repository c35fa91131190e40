"""What a sweep shows while it runs: trials that run, the best so far, and the time that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table

from proxscore.experiments.progress import pace
from proxscore.experiments.selection import cost
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.plan import Plan
from proxscore.experiments.sweep.space import Params

BEST = 5  # trials in the table, beside those that run
WIDTH = 120  # of tables in a file
INTERVAL = 1.0  # seconds between looks on a terminal
PAPER = 60.0  # seconds between tables where output goes to a file


class Live:
    """Shows the ledger.

    Args:
        show: receives lines where the output is no terminal.
    """

    def __init__(self, plan: Plan, ledger: Ledger, show: Callable[[str], None]) -> None:
        self.plan, self.ledger, self.show = plan, ledger, show
        self.console = Console() if Console().is_terminal else Console(width=WIDTH)
        self.current, self.total = "", 0
        self.started = self.shown = time.monotonic()
        self.done_before = 0
        self.screen: RichLive | None = None

    def __enter__(self) -> Live:
        if self.console.is_terminal:
            self.screen = RichLive(console=self.console, auto_refresh=False, transient=True)
            self.screen.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.screen is not None:
            self.screen.stop()
            self.screen = None

    def stage(self, name: str, total: int) -> None:
        """A stage of so many trials begins, or goes on."""
        self.current, self.total, self.started = name, total, time.monotonic()
        self.done_before = len(self._done())

    def ended(self, trial: Trial) -> None:
        """A trial has ended."""
        objective = next(iter(self.plan.objectives))
        if trial.status == "failed":
            what = f"failed: {trial.error}"
        else:
            what = (
                f"{trial.status} at epoch {trial.epoch if not trial.final else trial.epochs:.3g}, validation "
                + " ".join(f"{name} {trial.value(name):.4f}" for name in self.plan.objectives)
            )
        best = self.best()
        text = "" if not best else f" · best {objective} {best[0].value(objective):.4f} (trial {best[0].number})"
        self._line(f"{self._head()} · trial {trial.number} {what}{text}")

    def refresh(self, force: bool = False) -> None:
        """Show the table again, if it is time."""
        now = time.monotonic()
        if self.screen is not None:
            if force or now - self.shown > INTERVAL:
                self.shown = now
                self.screen.update(self.table(), refresh=True)
        elif self.current and now - self.shown > PAPER:
            self.shown = now
            with self.console.capture() as captured:
                self.console.print(self.table())
            self.show(captured.get().rstrip())

    def _line(self, text: str) -> None:
        if self.screen is not None:
            self.console.print(text)
        else:
            self.show(text)

    def best(self) -> list[Trial]:
        """Finished trials of the search, the best first."""
        (objective, more), *_ = self.plan.objectives.items()
        usable = [t for t in self.ledger.of("search", "finished") if math.isfinite(t.value(objective))]
        return sorted(usable, key=lambda trial: (-trial.epochs, cost(trial.value(objective), more)))

    def table(self) -> Table:
        """Trials that run, and the best."""
        table = Table(title=self._head(), title_justify="left", expand=True)
        for column in ("trial", "status", "epoch", *self.plan.objectives, "minutes", "settings"):
            left = column in ("status", "settings")
            ratio = 1 if column == "settings" else None  # what the others leave
            table.add_column(
                column, justify="left" if left else "right", no_wrap=True, overflow="ellipsis", ratio=ratio
            )
        running = [trial for trial in self.ledger.trials if trial.status == "running"]
        for trial in running + self.best()[:BEST]:
            values = [trial.value(name) for name in self.plan.objectives]
            table.add_row(
                str(trial.number),
                trial.outcome,
                f"{trial.epoch if not trial.final else trial.epochs:.3g}/{trial.epochs:g}",
                *(f"{value:.4f}" if math.isfinite(value) else "" for value in values),
                f"{trial.seconds / 60:.1f}",
                short(trial.params),
            )
        return table

    def _done(self) -> list[Trial]:
        return [t for t in self.ledger.of(self.current) if t.status in ("finished", "stopped", "failed")]

    def _head(self) -> str:
        done, total = self._done(), self.total
        failed = sum(trial.status == "failed" for trial in done)
        text = f"{self.current} {len(done)}/{total}" + (f" ({failed} failed)" if failed else "")
        limit = self.plan.tune.time_limit if self.current == "search" else None
        return text + pace(
            len(done) - self.done_before,
            total - len(done),
            time.monotonic() - self.started,
            None if limit is None else limit - self.ledger.search_seconds,
        )


def short(params: Params) -> str:
    """Settings in a line: the last parts of their keys."""
    if not params:
        return "as given"

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "[" + " ".join(f"{item:.3g}" for item in value) + "]"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return " ".join(f"{'.'.join(key.split('.')[-2:])}={text(value)}" for key, value in params.items())
