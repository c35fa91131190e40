"""One replica of the server: a predictor that answers batches of requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from proxscore.config import ConfigError
from proxscore.posterior.drawn import most_copied
from proxscore.predictor.opening import load
from proxscore.serving.budget import LatencyBudget
from proxscore.serving.requests import Limits, RefusedError, Request
from proxscore.tasks.predictor import Predictor

SIZES = (1, 16, 32)  # images of the answers that are measured before the first request


@dataclass(frozen=True)
class Served:
    """What is served, and how.

    Attributes:
        posterior: where it lies.
        overrides: settings of its task and of tracking.
        draws: of an answer that asks for no number; none: as many as it was judged by.
        seconds: that an answer may take; none: as long as its draws do.
        limits: of a request.
        device: of the network.
    """

    posterior: str
    overrides: tuple[str, ...] = ()
    draws: int | None = None
    seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"


class Replica:
    """Opens the posterior, measures what its draws take, and answers.

    Args:
        served: what, and how.
    """

    def __init__(self, served: Served) -> None:
        self.served = served
        self.predictor: Predictor = load(served.posterior, device=served.device, overrides=served.overrides)
        self.draws, self.seed = self.predictor.chosen(served.draws, None)
        self.draws = min(self.draws, served.limits.draws)
        self.budget = LatencyBudget(served.seconds)
        self._warm_up()

    def _warm_up(self) -> None:
        """Make all draws that a request may have ready, and see what they take."""
        example = self.predictor.config.task.example_input(self.predictor.description, self.served.posterior)[1]
        most = self.served.limits.draws if self.predictor.posterior.random else 0
        if self.predictor.statistics is not None:  # of no more draws are the statistics known
            most = min(most, self.predictor.statistics.draws)
        if (fitting := most_copied(self.predictor.posterior)) is not None:  # of more, none would be kept
            most = min(most, max(fitting, self.draws))
        self._predict(Request(example), most)
        for rows in SIZES if self.predictor.takes == "images" else (1,):
            table = pd.concat([example] * rows, ignore_index=True)
            seconds = [min(self._seconds(table, draws) for _ in range(3)) for draws in (min(most, 1), most)]
            self.budget.measured(rows, (min(most, 1), most), (seconds[0], seconds[1]))

    def _seconds(self, table: pd.DataFrame, draws: int) -> float:
        started = time.perf_counter()
        self._predict(Request(table), draws)
        return time.perf_counter() - started

    def answers(self, requests: Sequence[Request]) -> list[dict[str, Any] | RefusedError]:
        """Answer requests, those that are alike together."""
        found: list[dict[str, Any] | RefusedError] = [RefusedError("not answered", 500)] * len(requests)
        groups: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            alone = place if self.predictor.takes == "series" else None  # names of series may be the same
            groups.setdefault((request.alike, alone), []).append(place)
        for places in groups.values():
            for place, answer in zip(places, self._together([requests[place] for place in places]), strict=True):
                found[place] = answer
        return found

    def _together(self, requests: Sequence[Request]) -> list[dict[str, Any] | RefusedError]:
        first = requests[0]
        table = first.table if len(requests) == 1 else pd.concat([each.table for each in requests], ignore_index=True)
        wanted = self.draws if first.draws is None else first.draws
        wanted = wanted if self.predictor.posterior.random else 0
        rows = len(table) if self.predictor.takes == "images" else 1
        draws, started = self.budget.draws(rows, wanted), time.perf_counter()
        try:
            frame = self._predict(Request(table, None, first.seed, first.all, first.quantiles), draws)
        except ConfigError as error:
            return [RefusedError(" ".join(str(error).split()))] * len(requests)
        seconds = time.perf_counter() - started
        self.budget.learn(rows, draws, seconds)
        about: dict[str, Any] = {
            "draws": draws,
            "draws_wanted": wanted,
            "seed": self.seed if first.seed is None else first.seed,
            "milliseconds": round(1000 * seconds, 2),
            "rows_together": len(table),
        }
        if draws < wanted and self.budget.seconds is not None:
            about["why_fewer_draws"] = f"{wanted} draws do not fit into {1000 * self.budget.seconds:g} ms"
        about |= {"verdict": self.predictor.verdict, "notes": list(self.predictor.notes)}
        records = frame.drop(columns=["verdict"], errors="ignore").astype(object).where(frame.notna(), None)
        if self.predictor.takes == "series":
            records["timestamp"] = [str(each) for each in records["timestamp"]]
        answers: list[dict[str, Any] | RefusedError] = []
        start = 0
        for request in requests:
            count = len(records) if len(requests) == 1 else len(request.table)
            answers.append({"predictions": _plain(records.iloc[start : start + count])} | about)
            start += count
        return answers

    def _predict(self, request: Request, draws: int) -> pd.DataFrame:
        images = self.predictor.takes == "images"
        options: dict[str, Any] = {"errors": "keep", "texts": "base64"} if images else {}
        seed = self.seed if request.seed is None else request.seed
        found = self.predictor.predict(request.table, draws, seed, **options)
        return found.to_frame(all=request.all, quantiles=request.quantiles)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them; a row without an error has no key of that name."""
    rows = []
    for row in frame.to_dict("records"):
        own = {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
        if own.get("error", "") is None:
            own.pop("error")
        rows.append(own)
    return rows
