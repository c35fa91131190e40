"""All numbers of a report, by all processes together: one pass over the data for each condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from proxscore.calibration.out_of_distribution import detection
from proxscore.calibration.risk_coverage import accuracy_at_coverages, area_under_risk_coverage, risk_coverage
from proxscore.posterior import Posterior
from proxscore.posterior.drawn import Drawn
from proxscore.report.calibrated import Calibration, Sets, calibrate, uniform_numbers
from proxscore.report.cost import seconds_of
from proxscore.report.judged import SCORES, Judged, scores_of
from proxscore.report.options import Options
from proxscore.report.progress import Progress
from proxscore.report.scored import Place, Predictor, Scored, has_draws, predictor_draws
from proxscore.training.run import Run
from proxscore.vision.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImage, NumberedImages
from proxscore.vision.image_task import ImageTask
from proxscore.vision.outside import Outside
from proxscore.vision.splits import Rows

COVERAGES = (0.5, 0.7, 0.8, 0.9, 0.95)
CURVE = 200  # points of a curve that are kept
HISTOGRAM = 30  # bins
TIMED = 256  # images that the cost is measured on, at most
SHIFT_METRICS = ("accuracy", "nll", "ece", "ece_all_classes", "brier", "confidence", "entropy", "mutual_information")

Results = dict[str, Any]


class Report:
    """The work of one process.

    Args:
        run: with the network and the task.
        posterior: where draws come from.
        options: what is asked.
        outside: sets of other images.
        place: of this process among those that share the rows.
        show: shows a line of progress; none: nothing is said.
    """

    def __init__(
        self,
        run: Run,
        posterior: Posterior,
        options: Options,
        outside: list[Outside],
        place: Place,
        show: Callable[[str], None] | None,
    ) -> None:
        self.run, self.posterior, self.options, self.outside, self.place = run, posterior, options, outside, place
        self.task = cast(ImageTask, run.task)
        self.images = getattr(self.task.data, options.split)
        self.device = run.worker.device
        self.has_draws = has_draws(posterior, options.draws)
        self.shift_rows = self._shift_rows()
        shifted = (len(CORRUPTIONS) * len(STRENGTHS) + (len(self.shift_rows) < len(self.images))) * len(self.shift_rows)
        calibration = len(getattr(self.task.data, options.calibration))
        total = calibration + (1 + self.has_draws) * len(self.images) + shifted + sum(len(o.images) for o in outside)
        self.progress = Progress(total, place.world, show)

    def compute(self) -> Results:
        """All sections; the same on all processes but for the seconds. A collective."""
        results: Results = {}
        timed = self.images.__getitems__(list(range(min(TIMED, len(self.images)))))[0]
        with predictor_draws(self.run, self.posterior, 0) as plain:
            plain_seconds = seconds_of(plain, timed)
            single = self._single(plain) if self.has_draws else None
        with predictor_draws(self.run, self.posterior, self.options.draws) as found:
            predictor = Predictor(self.run, found, self.place)
            results["cost"] = self._cost(plain_seconds, seconds_of(found, timed), predictor.draws, len(timed))
            calibration = self._calibration(predictor)
            results |= self._judged(predictor, calibration)
            if single is not None:
                results["in_distribution"]["single"] = single | {"called": self.posterior.single}
            results["shift"] = self._shift(predictor, results["in_distribution"]["metrics"])
            results["out_of_distribution"] = [self._outside(predictor, each) for each in self.outside]
            del self._inside
        return results | {"draws": predictor.draws, "has_draws": self.has_draws}

    def _batches(self, name: str, predictor: Predictor, images: NumberedImages) -> Iterator[Scored]:
        return self.progress.part(name, predictor.scored(images), lambda batch: len(batch.rows))

    def _read(self, predictor: Predictor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the rows that are corrupted: each image is read once for all its corruptions."""
        images = NumberedImages(self.images, only=self.shift_rows)
        conditions = len(CORRUPTIONS) * len(STRENGTHS)
        return self.progress.part("corruptions", predictor.read(images), lambda batch: conditions * len(batch[1]))

    def _judged_labels(self) -> Judged:
        return Judged(self.task.classes, self.run.config.evaluation.bins, self.device)

    def _judge(self, name: str, predictor: Predictor, images: NumberedImages) -> Judged:
        judged = self._judged_labels()
        for batch in self._batches(name, predictor, images):
            judged.add(batch)
        return judged

    # ------------------------------------------------------------ parts

    def _cost(self, plain: float, drawn: float, draws: int, images: int) -> Results:
        per_1000 = 1000 / max(images, 1)  # none of the first ones may be readable
        return {
            "images": images,
            "draws": draws,
            "seconds_per_1000": per_1000 * drawn,
            "plain_seconds_per_1000": per_1000 * plain,
            "ratio": drawn / plain,
            "device": str(self.device),
        }

    def _single(self, plain: Drawn) -> Results:
        """The split under the mean weights (or one member)."""
        judged = self._judge("mean weights", Predictor(self.run, plain, self.place), NumberedImages(self.images))
        return {key: value for key, value in judged.results().items() if key in SHIFT_METRICS[:6]}

    def _calibration(self, predictor: Predictor) -> Calibration:
        options = self.options
        images = getattr(self.task.data, options.calibration)
        batches = self._batches("calibration", predictor, NumberedImages(images))
        uniform = uniform_numbers(options.seed, options.calibration, len(images))
        return calibrate(batches, uniform, options.coverage, options.calibration, self.device)

    def _judged(self, predictor: Predictor, calibration: Calibration) -> Results:
        options = self.options
        judged = Judged(self.task.classes, self.run.config.evaluation.bins, self.device, calibration.temperature)
        sets = Sets(self.task.classes, calibration, uniform_numbers(options.seed, options.split, len(self.images)))
        for batch in self._batches(f"{options.split} split", predictor, NumberedImages(self.images)):
            judged.add(batch)
            sets.add(batch)
        metrics = self._defined(judged.results())
        self._inside = judged.scores()
        at_temperature = judged.tempered.compute()
        inside = {
            "metrics": metrics,
            "skipped_rows": len(self.images) - round(metrics["rows"]),
            "ece_by_chance": judged.ece_by_chance(),
            "temperature": calibration.temperature,
            "tempered": {key: at_temperature[key] for key in ("nll", "brier", "ece", "ece_all_classes")},
            "classes": judged.by_class(self.task.data.classes),
            "reliability": judged.reliability(),
        }
        return {
            "in_distribution": inside,
            "selective": selective(judged.metrics.confidences, judged.metrics.correct),
            "prediction_sets": {
                "coverage": options.coverage,
                "calibration_rows": calibration.rows,
                "methods": sets.results(self.device),
            },
        }

    def _defined(self, metrics: dict[str, float]) -> Results:
        """Without what is not defined for a point estimate."""
        return metrics if self.has_draws else metrics | {"mutual_information": None, "expected_entropy": None}

    def _shift_rows(self) -> Rows:
        """Numbers of the rows that are corrupted, ascending."""
        count, wanted = len(self.images), self.options.shift_rows
        if wanted is None or wanted >= count:
            return np.arange(count, dtype=np.int64)
        keys = np.random.default_rng(self.options.seed).random(count)
        return np.sort(np.argsort(keys, kind="stable")[:wanted]).astype(np.int64)

    def _shift(self, predictor: Predictor, clean: Results) -> Results:
        if len(self.shift_rows) < len(self.images):
            images = NumberedImages(self.images, only=self.shift_rows)
            clean = self._defined(self._judge("uncorrupted", predictor, images).results())
        judged = {(name, strength): self._judged_labels() for name in CORRUPTIONS for strength in STRENGTHS}
        for inputs, numbered in self._read(predictor):
            for (name, strength), each in judged.items():
                change = CorruptedImage(name, strength, self.task.normalisation, self.options.seed)
                each.add(predictor.score(_changed(inputs, numbered[:, 1], change), numbered), scores=False)
        found: Results = {}
        for name, corruption in CORRUPTIONS.items():
            results = [self._defined(judged[name, strength].results()) for strength in STRENGTHS]
            strengths = [{key: values[key] for key in SHIFT_METRICS} for values in results]
            found[name] = {"parameters": corruption.parameters, "meaning": corruption.meaning, "strengths": strengths}
        return {
            "rows": len(self.shift_rows),
            "uncorrupted": {key: clean[key] for key in SHIFT_METRICS},
            "corruptions": found,
            "mean": [_mean([each["strengths"][place] for each in found.values()]) for place in range(len(STRENGTHS))],
        }

    def _outside(self, predictor: Predictor, outside: Outside) -> Results:
        scores = scores_of(self._batches(outside.name, predictor, NumberedImages(outside.images)), self.device)
        measures: Results = {}
        for place, name in enumerate(SCORES):
            defined = self.has_draws or name != "mutual_information"
            measures[name] = vars(detection(self._inside[:, place], scores[:, place])) if defined else None
        confidence = 1 - scores[:, 0].exp()
        return {
            "name": outside.name,
            "label": outside.label,
            "rows": len(scores),
            "skipped_rows": len(outside.images) - len(scores),
            "confidence": float(confidence.mean()),
            "sure": float((confidence >= 0.9).double().mean()),
            "scores": measures,
            "histogram": _histogram(self._inside[:, 1], scores[:, 1], float(np.log(self.task.classes))),
        }


def selective(confidences: Tensor, correct: Tensor) -> Results:
    """The risk-coverage curve, its area, and accuracies at ``COVERAGES``."""
    risks = risk_coverage(confidences, correct)
    places = np.unique(np.linspace(0, len(risks) - 1, min(CURVE, len(risks))).round().astype(int))
    return {
        "aurc": area_under_risk_coverage(confidences, correct),
        "coverage": list(COVERAGES),
        "accuracy": accuracy_at_coverages(confidences, correct, COVERAGES),
        "curve": {"coverage": ((places + 1) / len(risks)).tolist(), "risk": risks[torch.from_numpy(places)].tolist()},
    }


def _changed(inputs: Tensor, rows: Tensor, change: CorruptedImage) -> Tensor:
    """The images of these rows, changed; inputs beyond them are padding."""
    changed = [change(image, row) for image, row in zip(inputs, rows.tolist(), strict=False)]
    return torch.stack([*changed, *inputs[len(changed) :]])


def _mean(each: list[Results]) -> Results:
    return {
        key: None if any(one[key] is None for one in each) else sum(one[key] for one in each) / len(each)
        for key in SHIFT_METRICS
    }


def _histogram(inside: Tensor, outside: Tensor, largest: float) -> Results:
    """Rows by entropy, as fractions of each side, in bins of equal width from 0 to its largest value, log C."""
    edges = np.linspace(0, largest, HISTOGRAM + 1)
    counts = {
        name: np.histogram(values.clamp(0, largest).numpy(), bins=edges)[0] / len(values)
        for name, values in (("inside", inside), ("outside", outside))
    }
    return {"edges": edges.tolist(), **{name: found.tolist() for name, found in counts.items()}}
