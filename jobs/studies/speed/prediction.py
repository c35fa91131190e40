"""How fast a prediction by S draws is, beside S plain forward passes of the same network on the same batches.

    python jobs/studies/speed/prediction.py [--quick]

All contestants take turns within every round, in one process on one thread, on a GPU where there is one; given are medians over
the rounds with quartiles. A ratio is that of a contestant's rows per second to those of plain passes in the same round, so that
other load on the machine touches both:

* **draws**: ``predict`` from nothing, the draws' weights made and put into place among it, to S plain passes;
* **draws, ready**: the same with the draws made before, as servers have them;
* **draws, made anew**: draws that do not fit into memory are made for each group of batches, to S plain passes;
* **auto**: as many draws as it takes, to one plain pass per draw that was taken;
* **single pass**: the closed form of a linearised last layer, to one plain pass;
* **last layer**: S draws of the last layer alone, to one plain pass.

A plain pass is the network in evaluation mode under ``no_grad``, and the softmax of its outputs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from proxscore.inference import Categorical
from proxscore.posterior import Posterior, drawn, predict
from proxscore.posterior.prediction import predicted
from proxscore.posterior.settled import UntilSettled
from proxscore.posterior.single_pass import difference, predict_in_one_pass
from proxscore.posterior.stacked import StackedDraws
from proxscore.terminal.tables import shown, table
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)


@dataclass(frozen=True)
class Case:
    """A network, and what goes through it.

    Attributes:
        build: the network.
        shape: of an input.
        batch: rows of a batch.
        batches: how many of them.
        draws: S.
        sd: of each weight.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    batches: int
    draws: int
    sd: float = 0.02


def mlp() -> nn.Module:
    """784 - 200 - 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def tabular() -> nn.Module:
    """20 - 64 - 64 - 10."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


CASES: dict[str, Case] = {
    "tabular MLP": Case(tabular, (20,), 16, 64, 16, 0.05),
    "MLP": Case(mlp, (1, 28, 28), 64, 32, 16),
    "small_cnn": Case(lambda: timm.create_model("small_cnn"), (1, 28, 28), 64, 8, 16),
    "vit_tiny_patch16_224": Case(lambda: timm.create_model("vit_tiny_patch16_224"), (3, 224, 224), 8, 2, 8, 0.005),
}


class Contest:
    """A network with a posterior, batches, and what is to be compared on them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.module = case, case.build().to(device).eval()
        mean = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        precision = {name: torch.full_like(m, case.sd**-2) for name, m in mean.items()}
        self.posterior = Posterior(mean, precision)
        self.batches = [torch.randn(case.batch, *case.shape) for _ in range(case.batches)]
        self.device, self.rule, self.taken = device, UntilSettled(most=4 * case.draws), 0.0

    @property
    def rows(self) -> int:
        """Of all batches."""
        return self.case.batch * self.case.batches

    def contestants(self) -> Iterator[tuple[str, Callable[[], Any], Callable[[], float]]]:
        """Name, what runs, and how many plain passes it is compared with."""
        draws = self.case.draws
        yield "draws", lambda: predict(self.module, self.batches, self.posterior, draws=draws), lambda: draws
        yield "draws, ready", self._ready, lambda: draws
        yield "draws, made anew", self._anew, lambda: draws
        yield "auto", self._auto, lambda: self.taken
        yield "single pass", lambda: predict_in_one_pass(self.module, self.batches, self.posterior), lambda: 1
        yield "last layer", self._last_layer, lambda: 1

    @torch.no_grad()
    def plain(self) -> None:
        """One plain pass, and one more for each further draw."""
        for inputs in self.batches:
            placed, total = inputs.to(self.device), torch.zeros(())
            for _ in range(self.case.draws):
                total = self.module(placed).softmax(1).cpu() + total

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the context, draws are ready."""
        with drawn.drawn(self.module, self.posterior, self.case.draws) as found:
            self._found = StackedDraws(found)
            self._ready()  # stacks them, where that pays
            yield

    def _ready(self) -> Any:
        return predicted(self._found, self.batches, Categorical())

    def _anew(self) -> Any:
        held, drawn.SNAPSHOTS = drawn.SNAPSHOTS, 0
        try:
            return predict(self.module, self.batches, self.posterior, draws=self.case.draws)
        finally:
            drawn.SNAPSHOTS = held

    def _auto(self) -> Any:
        found = predict(self.module, self.batches, self.posterior, draws=self.rule)
        assert found.draws is not None
        self.taken = found.draws.double().mean().item()
        return found

    def _last_layer(self) -> Any:
        return predict_in_one_pass(self.module, self.batches, self.posterior, head_draws=self.case.draws)

    def seconds(self, call: Callable[[], Any]) -> float:
        """What it takes."""
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """A line of the table for each contestant on each network.

    Args:
        quick: two rounds, and a ViT is left out.

    Returns:
        Per line ``network``, ``weights``, ``batch``, ``method``, ``draws`` (of ``auto`` on average), ``rows_per_second``,
        ``of_plain`` (each median, lower and upper quartile), and ``difference``: total variation from 16 S draws of all weights.
    """
    found = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, case in CASES.items():
        if quick and name.startswith("vit"):
            continue
        contest = Contest(case, device)
        for line in _measured(contest, 2 if quick else 7):
            weights = sum(p.numel() for p in contest.module.parameters())
            found.append({"network": name, "weights": weights, "batch": case.batch} | line)
    return found


def _measured(contest: Contest, rounds: int) -> Iterator[dict[str, Any]]:
    plain: list[float] = []
    times: dict[str, list[float]] = {}
    passes: dict[str, Callable[[], float]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, call, count in contest.contestants():
        times[name], passes[name], calls[name] = [], count, call
    for number in range(rounds + 1):
        taken = contest.seconds(contest.plain) / contest.case.draws
        seconds = {}
        for name, call in calls.items():
            if name == "draws, ready":
                with contest.ready():
                    seconds[name] = contest.seconds(call)
            else:
                seconds[name] = contest.seconds(call)
        if number:  # the first round is to warm up
            plain.append(taken)
            for name, value in seconds.items():
                times[name].append(value)
    yield _line("plain pass", 1, [contest.rows / each for each in plain], [1.0] * rounds, "")
    many = predict(
        contest.module,
        contest.batches[:2],
        contest.posterior,
        draws=8 if rounds < 3 else 16 * contest.case.draws,
        seed=1,
    )
    for name, call in calls.items():
        ratios = [one * passes[name]() / mine for one, mine in zip(plain, times[name], strict=True)]
        draws: float = {"auto": contest.taken, "single pass": 0}.get(name, contest.case.draws)
        held, contest.batches = contest.batches, contest.batches[:2]
        if name == "draws, ready":
            with contest.ready():
                answer = call()
        else:
            answer = call()
        contest.batches = held
        yield _line(
            name, draws, [contest.rows / each for each in times[name]], ratios, _mean_of(difference(answer, many))
        )


def _mean_of(found: Any) -> str:
    return f"{found.mean:.4f}"


def _line(method: str, draws: float, speeds: list[float], ratios: list[float], differs: str) -> dict[str, Any]:
    return {
        "method": method,
        "draws": draws,
        "rows_per_second": _quartiles(speeds),
        "of_plain": _quartiles(ratios),
        "difference": differs,
    }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def main(arguments: list[str]) -> int:
    """Print the table."""
    torch.set_num_threads(1)
    cells = []
    for row in rows(quick="--quick" in arguments):
        median, low, high = row["rows_per_second"]
        ratio, below, above = row["of_plain"]
        cells.append(
            [
                f"{row['network']} ({row['weights']:,} weights, batch {row['batch']})",
                row["method"],
                f"{row['draws']:g}",
                f"{median:,.0f} [{low:,.0f}, {high:,.0f}]",
                f"{ratio:.2f} [{below:.2f}, {above:.2f}]",
                row["difference"],
            ]
        )
    header = ["network", "method", "draws", "rows/s", "of plain passes", "TV from many draws"]
    shown("predictions by draws, and plain passes", table(header, cells, left=(0, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
