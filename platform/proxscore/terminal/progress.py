"""How far a run is, as one line that people read and that :class:`proxscore.terminal.lines.Lines` draws as a bar.

Whoever trains prints the line, on a cluster in another process. It comes to the job's own process as text, so that the text is
all that there is to agree on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

AWAY = "tracking server away for"  # so begins what is told of one

_LINE = re.compile(
    r"(?P<label>[^ ]+) · step (?P<step>\d+)/(?P<total>\d+) \(epoch (?P<epoch>[\d.]+)\)(?P<about>( · [^·]+)*)"
)


def say(line: str) -> None:
    """Print a line at once. The builtin itself cannot travel to another process once Ray has replaced it by its own."""
    print(line, flush=True)


@dataclass(frozen=True)
class Progress:
    """A run after so many of its steps.

    Attributes:
        label: of the run, without spaces.
        about: what else is to say, the most important first: rate, time left, losses.
    """

    label: str
    step: int
    total: int
    epoch: float
    about: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.step >= self.total

    @property
    def troubled(self) -> bool:
        return any(part.startswith(AWAY) for part in self.about)

    def __str__(self) -> str:
        step = f"{self.label} · step {self.step}/{self.total} (epoch {self.epoch:.1f})"
        return " · ".join((step, *self.about))

    @classmethod
    def parse(cls, line: str) -> Progress | None:
        """What a line says; none if it is no line of progress."""
        found = _LINE.fullmatch(line.strip())
        if found is None:
            return None
        about = tuple(part for part in found["about"].split(" · ") if part)
        return cls(found["label"], int(found["step"]), int(found["total"]), float(found["epoch"]), about)


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
