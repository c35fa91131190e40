"""A report from its request to its files: checks, computation, the record, the page, and MLflow."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from proxscore.config import Config, ConfigError, masked
from proxscore.posterior import Posterior
from proxscore.report import work
from proxscore.report.compute import Results
from proxscore.report.headline import headline
from proxscore.report.options import Options
from proxscore.report.page import page
from proxscore.storage import write
from proxscore.tasks import ClassificationEvaluator, Task
from proxscore.tracking import tracking_uri
from proxscore.tracking.located import run_id_of
from proxscore.tracking.runs import UNREACHABLE
from proxscore.training.evaluation import package_versions
from proxscore.training.launch import with_absolute_paths
from proxscore.training.saved import Saved, seen_in_training
from proxscore.vision.image_task import ImageTask
from proxscore.vision.outside import BUILT_IN, load_outside
from proxscore.vision.overlap import check_outside
from proxscore.vision.task import PREPARATION

JSON, PAGE = "report.json", "report.html"

#: What stands beside the numbers in the record.
DEFINITIONS = {
    "ece": "top label: sum_b n_b / N |accuracy_b - confidence_b|, in bins of the most probable class's probability",
    "ece_all_classes": "all classes: the same over all N x C class probabilities, each a prediction of the event 'class is c' "
    "(as BayesDLL reports); not comparable with ece",
    "classwise_ece": "the same over the N probabilities of one class (Kull et al., 2019)",
    "nll": "mean of -log p(label), nats",
    "draw_nll": "mean over draws of the NLL of a single draw, nats",
    "brier": "mean of the sum over classes of (p - onehot)^2, from 0 to 2",
    "ece_by_chance": "the top-label ECE that a calibrated classifier with these confidences would show by chance",
    "maximum_probability": "score 1 - max_c p_c",
    "energy": "score: mean over draws of -log sum_c exp f_c(x) (Liu et al., 2020)",
    "fpr95": "fraction of other images that pass where at least 95% of the split's images pass",
    "aurc": "mean over coverages of the error among the most confident rows",
}


def make(
    saved: Saved,
    source: str,
    options: Options,
    output: Path,
    *,
    workers: int = 0,
    command: Sequence[str] = (),
    show: Callable[[str], None] = print,
) -> Results:
    """Compute a report, and write ``report.json`` and ``report.html`` into a folder; to the posterior's MLflow run, too, if
    it came from one.

    Args:
        saved: the posterior and the configuration of its task.
        source: where it came from, as it was asked for.
        workers: Ray Train workers that share the rows; zero: this process alone.
        command: that asked for it.
        show: shows a line of progress.

    Returns:
        The record that ``report.json`` holds.

    Raises:
        ConfigError: a task other than image classification, or whatever is at fault in options or data; one line.
    """
    options.check()
    trained = saved.posterior.description.get("data")
    if saved.config.task.kind != "vision":
        raise ConfigError(f"--report is for image classification; this posterior's task is {saved.config.task.kind}")
    config = with_absolute_paths(saved.config)
    names = [asked.removeprefix("near:").removeprefix("far:") for asked in options.outside]
    options = _absolute(options)
    task = _image_task(config.task.build(trained=trained))
    options.check_rows(task)
    outside = [load_outside(asked, task) for asked in options.outside]
    compared = [check_outside(asked, each, task) for asked, each in zip(options.outside, outside, strict=True)]
    if workers:
        results = work.on_ray(config, saved.posterior, options, trained, show)
    else:
        results = work.alone(config, task, saved.posterior, options, outside, show)
    for each, name, found in zip(results["out_of_distribution"], names, compared, strict=True):
        each |= {"name": name, "compared": found}
    record = _described(saved.posterior, config, task, options, source, results)
    record |= {"processes": max(workers, 1), "command": masked(shlex.join(command))}
    output.mkdir(parents=True, exist_ok=True)
    write(output / JSON, json.dumps(plain(record), indent=2, allow_nan=False) + "\n")
    write(output / PAGE, page(record))
    if (run_id := run_id_of(source)) is not None:
        _log(config, run_id, output)
    return record


def _image_task(task: Task) -> ImageTask:
    if not isinstance(task, ImageTask) or type(task.evaluator) is not ClassificationEvaluator:
        raise ConfigError(
            f"--report is for image classification with one label per image; this task is {type(task).__name__}"
        )
    return task


def _absolute(options: Options) -> Options:
    """Paths of other images as they are from anywhere: workers run in other folders."""
    found = []
    for asked in options.outside:
        label = next((word for word in ("near:", "far:") if asked.startswith(word)), "")
        name = asked.removeprefix(label)
        found.append(asked if name in BUILT_IN else f"{label}{Path(name).expanduser().absolute()}")
    return replace(options, outside=tuple(found))


def _described(
    posterior: Posterior, config: Config, task: ImageTask, options: Options, source: str, results: Results
) -> Results:
    """The results, and all that it takes to make them again."""
    description = posterior.description
    method = description.get("method")
    data = task.config.data
    verdict, told = posterior.verdict, posterior.told()
    for split in (options.split, options.calibration):
        told += seen_in_training(description, config, task.describe(), split)
    if options.split == "train":
        told.append(
            "warning    these are the rows that it was trained on: new images are classified less well, and less calibrated"
        )
    return {
        "title": f"{task.config.model.name} on {_data_name(task)}",
        "posterior": source,
        "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "method": str(method.get("kind")) if isinstance(method, dict) else "a method that is not recorded",
        "family": posterior.family,
        "verdict": None if verdict is None else verdict.as_json(),
        "told": told,
        "headline": [asdict(sentence) for sentence in headline(results, told)],
        "options": asdict(options) | {"outside": list(options.outside)},
        "data": task.describe(),
        "class_names": list(task.data.classes),
        "preprocessing": {key: getattr(data, key) for key in PREPARATION if getattr(data, key, None) is not None},
        "seeds": {"draws": config.evaluation.seed, "report": options.seed, "split": data.split_seed},
        "bins": config.evaluation.bins,
        "versions": package_versions(),
        "definitions": DEFINITIONS,
        "calibration_note": _calibration_note(options),
    } | results


def _data_name(task: ImageTask) -> str:
    path = getattr(task.config.data, "path", None)
    return str(task.config.data.kind if path is None else Path(path).name)


def _calibration_note(options: Options) -> str:
    own = f"The temperature was fitted on the same {options.calibration} images; the sets do not use it."
    if options.calibration == "validation":
        return (
            f"{own} If training stopped early, or settings were chosen, by this validation split, it has been looked at before: "
            "its images then fit a little better than new ones, so that coverage may fall short of the guarantee by a little."
        )
    return own


def _log(config: Config, run_id: str, output: Path) -> None:
    """Log both files to the run, under ``report``.

    Raises:
        ConfigError: the server cannot be used; the files lie in the output folder all the same.
    """
    from proxscore.tracking.client import Client

    uri = tracking_uri(config.tracking)
    try:
        client = Client(uri, patience=60.0)
        for name in (JSON, PAGE):
            client.log_artifact(run_id, str(output / name), "report")
    except UNREACHABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            masked(f"the report is in {output}, but not in MLflow run {run_id} at {uri}: {reason}")
        ) from error


def plain(value: Any) -> Any:
    """The same as JSON has it: no tuples, null for NaN, and ``"inf"`` for what is infinite."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
