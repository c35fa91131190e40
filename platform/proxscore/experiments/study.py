"""What the scripts of ``jobs/studies`` share: their options, rows that are kept as they end, mean ± spread, a plain figure.

def measure(options: Namespace, record: Study, rows: Rows) -> None:
    for key, row in rows.each([{"seed": seed} for seed in range(options.seeds)], lambda key: {"nll": ...}):
        ...
    record.table("nll", ["method", "NLL"], ...)

sys.exit(command("my study", __doc__, measure, {"path": {"type": Path, "required": True}}))
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from proxscore.config import Config, ConfigError
from proxscore.tracking.study import Study, study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Key = TypeVar("Key")
#: By panel, then by line: x, y and the error of y (zero: none).
Panels = Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]]


class Rows:
    """What was measured, a JSON line each, by its key: an interrupted study goes on behind the last line.

    Args:
        file: of the lines; none: nothing is kept.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.held: dict[str, Any] = {}
        if file is not None and file.exists():
            whole = file.read_text().rpartition("\n")[0]  # a line that was cut is of a process that was killed
            file.write_text(f"{whole}\n" if whole else "")
            self.held = {one["key"]: one["row"] for one in map(json.loads, whole.splitlines())}

    def row(self, key: Any, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returns, or returned when the key was met before; as JSON gives it back."""
        name = json.dumps(key, sort_keys=True, default=str)
        if name not in self.held:
            line = json.dumps({"key": name, "row": measure()})
            self.held[name] = json.loads(line)["row"]
            if self.file is not None:
                with self.file.open("a") as file:
                    file.write(f"{line}\n")
        return self.held[name]

    def each(self, keys: Iterable[Key], measure: Callable[[Key], Any]) -> Iterator[tuple[Key, Any]]:
        """Keys with their rows, with a bar of progress."""
        for key in (progress := tqdm(list(keys))):
            progress.set_postfix_str(str(key))
            yield key, self.row(key, lambda key=key: measure(key))  # type: ignore[misc]


def command(
    name: str,
    doc: str | None,
    measure: Callable[[Namespace, Study, Rows], None],
    options: Mapping[str, dict[str, Any]] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a study from its command line: ``--output``, ``--seeds``, ``--quick`` and what else it asks for.

    Args:
        name: of its run in MLflow, and of its folder.
        doc: the script's docstring.
        measure: called with the options, the record and the rows; torch computes in one thread until it says otherwise.
        options: further ones, or other defaults of the three; by name, what ``ArgumentParser.add_argument`` takes.
        arguments: those of the process, if none.

    Returns:
        Exit status: 2 where it was refused, in a line.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    common: dict[str, dict[str, Any]] = {
        "output": {"type": Path, "default": Path(name.replace(" ", "_")), "help": "folder of rows, tables and figures"},
        "seeds": {"type": int, "default": 3, "help": "runs of everything that is random (default: %(default)s)"},
        "quick": {"action": "store_true", "help": "seconds instead of minutes: does it run?"},
    }
    own = options or {}
    for option in {**common, **own}:
        parser.add_argument(f"--{option.replace('_', '-')}", **common.get(option, {}) | own.get(option, {}))
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error(f"--seeds is {chosen.seeds}; it must be at least 1")
    torch.set_num_threads(1)
    said = {key: value for key, value in vars(chosen).items() if key != "output"}
    try:
        with study(name, said, chosen.output) as record:
            measure(chosen, record, Rows(chosen.output / ("rows-quick.jsonl" if chosen.quick else "rows.jsonl")))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def spread(values: Sequence[float], digits: int = 3, *, error: bool = False) -> str:
    """Mean ± standard deviation, or with ``error`` the standard error; the mean alone of one value."""
    if not values:
        return ""
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / (math.sqrt(len(values)) if error else 1):.{digits}f}"


def trained(config: Config) -> dict[str, Any]:
    """Train a job's method in this process, and judge it.

    Returns:
        The metrics of the posterior (of a point estimate: its own) on the test split; ``validation`` NLL at the end;
        ``mean``: NLL of the posterior's mean; ``shifted``: metrics by shift; ``verdict``.
    """
    from mlflow import MlflowClient

    from proxscore.tracking import tracking_uri
    from proxscore.training import launch

    training = config.training.model_copy(update={"workers": 0})
    config = config.model_copy(update={"baseline": None, "training": training})
    (outcome,) = launch.run(config, lambda line: None)
    recorded = MlflowClient(tracking_uri(config.tracking)).get_run(outcome.run_id).data
    variants = outcome.results["test"]
    shifted = outcome.results.get("shifted", {})
    return posterior_of(variants) | {
        "validation": recorded.metrics["validation/nll"],
        "mean": variants.get("mean", posterior_of(variants))["nll"],
        "shifted": {shift: posterior_of(found) for shift, found in shifted.items()},
        "verdict": recorded.tags.get("verdict", ""),
    }


def posterior_of(variants: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Of a judged method's variants the one that its draws make, or the only one."""
    return variants["posterior" if "posterior" in variants else "point"]


def lines(panels: Panels, xlabel: str, ylabel: str, *, y: str = "log") -> Figure:
    """A panel beside the other, lines over a logarithmic x; values that are not finite are left out.

    Args:
        y: its scale; ``symlog`` has a line at zero and is linear to 0.1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for label, points in found.items():
            finite = [point for point in points if all(map(math.isfinite, point))]
            x, values, errors = zip(*finite, strict=True) if finite else ((), (), ())
            axis.errorbar(x, values, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=label)
        axis.set(title=title, xlabel=xlabel, xscale="log")
        axis.set_yscale(y, **({"linthresh": 0.1} if y == "symlog" else {}))
        if y == "symlog":
            axis.axhline(0, color="black", linewidth=0.5)
    axes[0].set_ylabel(ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure
