"""A posterior that stands on its own: network, likelihood and preprocessing, rebuilt from what it was saved with."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import MAX_DRAWS, MAX_SEED, Config, ConfigError
from proxscore.posterior import Posterior
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import Drawn, drawn
from proxscore.posterior.last_layer import HeadDraws
from proxscore.posterior.settled import UntilSettled
from proxscore.posterior.stacked import StackedDraws
from proxscore.tasks.predictions import Prediction

DRAWS = 16


class Predictor(ABC):
    """Predicts new data by draws from a saved posterior; :func:`proxscore.load` makes one.

    Draws are made once, and kept where they are small, for as long as number and seed stay the same. Calls from several threads
    take turns.

    Attributes:
        posterior: over the weights.
        module: the network, with the mean weights.
        config: of the task.
        folder: that it was read from.
    """

    #: What ``predict`` takes, in a word.
    takes: str

    def __init__(
        self, posterior: Posterior, module: nn.Module, config: Config, folder: Path, device: torch.device
    ) -> None:
        self.posterior, self.config, self.folder, self.device = posterior, config, folder, device
        self.module = posterior.load_into(module).to(device).eval()
        self.statistics = DrawStatistics.load(folder)
        self._ready: tuple[tuple[int, int, bool], StackedDraws, Drawn] | None = None
        self._lock, self._closing = threading.RLock(), weakref.finalize(self, _close, ExitStack())

    @property
    def description(self) -> dict[str, Any]:
        """What the posterior was saved with: task, data, method, versions."""
        return self.posterior.description

    @property
    def validation(self) -> Mapping[str, Any]:
        """What the validation split said of it when it was saved: ``nll``, ``rows``, ``draws``, thresholds of sets."""
        found = self.description.get("validation")
        return found if isinstance(found, Mapping) else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before its numbers are trusted; empty of a posterior that has converged."""
        return tuple(line.split(maxsplit=1)[1] for line in self.posterior.told() if line.startswith("warning"))

    @property
    def verdict(self) -> str | None:
        """Whether training found it converged, still moving or diverged; none: it was not judged."""
        return None if self.posterior.verdict is None else self.posterior.verdict.answer

    def __repr__(self) -> str:
        notes = "".join(f"\n  {note}" for note in self.notes)
        return f"{type(self).__name__}({self.config.task.network}, {self.posterior!r}){notes}"

    def sample(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """n draws of the weights, (n, *shape) by name; see :meth:`proxscore.posterior.Posterior.sample`."""
        return self.posterior.sample(n, seed)

    def sd(self) -> dict[str, Tensor]:
        """Standard deviations of the weights by name; see :meth:`proxscore.posterior.Posterior.sd`."""
        return self.posterior.sd()

    @abstractmethod
    def predict(self, data: Any, draws: int | None = None, seed: int | None = None, **options: Any) -> Prediction:
        """Predict new data."""

    def most(self, rule: UntilSettled) -> int:
        """The most draws that a prediction takes until it has settled."""
        return rule.most if self.statistics is None else min(rule.most, self.statistics.draws)

    def chosen(self, draws: int | None, seed: int | None) -> tuple[int, int]:
        """The number and the seed of draws: what is asked for, else those that the posterior was judged by.

        Raises:
            ConfigError: a number that is negative or too large.
        """
        default = self.validation.get("draws") or DRAWS
        draws = int(default) if draws is None else draws
        if isinstance(draws, str):
            raise ConfigError(f"draws is {draws!r}: of {self.takes} it must be a number")
        seed = int(self.validation.get("seed", 0)) if seed is None else seed
        if isinstance(draws, bool) or not isinstance(draws, int) or not 0 <= draws <= MAX_DRAWS:
            raise ConfigError(f"draws is {draws}; it must be zero (mean weights) or positive, at most {MAX_DRAWS}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed is {seed}; it must be a whole number from 0 to {MAX_SEED}")
        draws = draws if self.posterior.random else 0
        if self.statistics is not None:
            self.statistics.check(self.posterior.indices(draws) if draws else [], seed)
        return draws, seed

    @contextmanager
    def ready(self, draws: int, seed: int, *, lazily: bool = False) -> Iterator[StackedDraws]:
        """Within the context, these draws are ready in the network, and nobody else uses it.

        Args:
            lazily: perhaps not all are asked for; see :func:`proxscore.posterior.drawn.drawn`.
        """
        with self._lock:
            if not lazily and self._ready is not None and self._holds(draws, seed):
                with torch.no_grad():
                    yield self._ready[1].first(max(draws, 1))
                return
            if self._ready is None or self._ready[0] != (draws, seed, lazily):
                self.close()
                stack = ExitStack()
                found = stack.enter_context(
                    drawn(self.module, self.posterior, draws, seed, refresh=self.statistics, lazily=lazily)
                )
                self._closing = weakref.finalize(self, _close, stack)  # at the latest before the interpreter ends
                self._ready = (draws, seed, lazily), StackedDraws(found), found
            with torch.no_grad():
                yield self._ready[1]

    def _holds(self, draws: int, seed: int) -> bool:
        """Whether these draws are the first of those that are ready: a set of samples takes others if they are fewer."""
        assert self._ready is not None
        ready, known, lazily = self._ready[0]
        if lazily or seed != known or not 0 < draws <= ready:
            return False
        if draws < ready and not self._ready[2].copied:  # fewer may be kept
            return False
        return self.posterior.indices(draws) == self.posterior.indices(ready)[: len(self.posterior.indices(draws))]

    @contextmanager
    def last_layer(self, draws: int, seed: int) -> Iterator[HeadDraws]:
        """The same draws of the last layer alone, under mean weights before it."""
        with self._lock:
            self.close()
            with torch.no_grad(), drawn(self.module, self.posterior, 0, seed, refresh=self.statistics) as found:
                yield HeadDraws(found, self.posterior, max(draws, 1), seed)

    @contextmanager
    def one_by_one(self, draws: int, seed: int) -> Iterator[Drawn]:
        """The same, for a network that is called in other ways than with a batch."""
        with self._lock:
            if self._ready is not None and self._ready[0] != (draws, seed, False):
                self.close()
            with self.ready(draws, seed):
                assert self._ready is not None
                yield self._ready[2]

    def close(self) -> None:
        """Let go of the draws; the network has its mean weights again."""
        with self._lock:
            self._ready = None
            self._closing()


def _close(stack: ExitStack) -> None:
    stack.close()
