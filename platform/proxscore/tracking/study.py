"""A study: one command that measures something and leaves its table and its figures in MLflow, under one run."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxscore.config import TrackingConfig, masked
from proxscore.storage import replacing, write
from proxscore.tracking.runs import TrackedRun, source_tags, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Study:
    """What a study records; made by :func:`study`.

    Args:
        run: in MLflow.
        output: a folder that gets the same files, if given.
    """

    def __init__(self, run: TrackedRun, output: Path | None) -> None:
        self.run, self.output = run, output

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        """Print a table as Markdown, and record it as ``name.md`` and ``name.csv``.

        Returns:
            The Markdown.
        """
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
        print(text, flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            for folder in filter(None, (Path(temporary), self.output)):
                write(folder / f"{name}.md", text)
                with replacing(folder / f"{name}.csv") as partial, partial.open("w", newline="") as file:
                    csv.writer(file).writerows([header, *rows])
            self.run.artifacts(Path(temporary), "tables")
        return text

    def figure(self, name: str, figure: Figure) -> None:
        """Record a figure as ``figures/name.png``."""
        self.run.figure(figure, f"figures/{name}.png")
        if self.output is not None:
            with replacing(self.output / f"{name}.png") as partial:
                figure.savefig(partial, dpi=150)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Record single numbers."""
        self.run.metrics(values)


@contextmanager
def study(name: str, settings: Mapping[str, Any], output: Path | None = None) -> Iterator[Study]:
    """A run called ``name`` under the experiment ``studies``, whose status is true whatever happens within.

    Args:
        settings: what the study was run with; recorded as params.
        output: a folder that gets tables and figures too; made if it does not exist.
    """
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(TrackingConfig())
    run = TrackedRun(uri, "studies", name)
    with run.running():
        run.describe({key: value for key, value in settings.items()}, source_tags())
        yield Study(run, output)
    print(f"recorded in {masked(uri)}, experiment studies, run {run.run_id}", flush=True)
