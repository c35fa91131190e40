"""Predictions for images by a saved posterior: classes, several labels, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, HeteroscedasticGaussian, MultiLabel
from proxscore.posterior import Posterior
from proxscore.posterior.calls import to_device
from proxscore.posterior.prediction import Draws, predicted
from proxscore.posterior.settled import DrawCount, UntilSettled, until_settled
from proxscore.tasks.predictions import ClassPrediction, LabelsPrediction, Prediction, ValuesPrediction, with_gaps
from proxscore.tasks.predictor import Predictor
from proxscore.vision.inputs import ImageInputs, Texts, image_rows
from proxscore.vision.models import build_model
from proxscore.vision.task import VisionConfig

BATCH = 64  # images that go through the network together


class ImagePredictor(Predictor):
    """Predicts images; see :class:`proxscore.tasks.predictor.Predictor`.

    Args:
        posterior: with its description.
        config: the configuration of its task, in which nothing is loaded from elsewhere.
        folder: that it was read from.
        device: of the network.

    Raises:
        ConfigError: the description lacks something, or the network is of another architecture.
    """

    takes = "images"

    def __init__(self, posterior: Posterior, config: Config, folder: Path, device: torch.device) -> None:
        where, data = str(folder / "posterior.json"), posterior.description.get("data") or {}
        section = config.task
        assert isinstance(section, VisionConfig)
        self.inputs = ImageInputs.of(data, section.data, where)
        self.classes, self.likelihood, outputs = _head(data, section, where)
        module: nn.Module = build_model(section.model, classes=outputs, shape=self.inputs.shape)
        super().__init__(posterior, module, config, folder, device)

    def predict(
        self,
        data: Any,
        draws: DrawCount | None = None,
        seed: int | None = None,
        *,
        last_layer: bool = False,
        column: str | None = None,
        errors: str = "raise",
        batch_size: int = BATCH,
        texts: Texts = "paths",
        **options: Any,
    ) -> Prediction:
        """Predict images, which need no labels.

        Args:
            data: a folder, files, bytes of files, pictures, arrays, or a table with a column ``image`` or ``path``; see
                :mod:`proxscore.vision.inputs`.
            draws: of the posterior; by default as many as it was judged by, 0: the mean weights; ``"auto"`` or an
                :class:`~proxscore.posterior.settled.UntilSettled`: as many as it takes until the images that go through the
                network together have settled probabilities.
            seed: of the draws.
            last_layer: draws are of the last layer alone, under mean weights before it: in the time of one pass, and surer than
                the posterior is.
            column: of a table.
            errors: ``raise`` at the first image that cannot be read, or ``keep`` its row, with NaN and the reason.
            batch_size: images that go through the network together.
            texts: what a text stands for, ``paths`` or ``base64``.

        Returns:
            :class:`ClassPrediction`, :class:`LabelsPrediction` or :class:`ValuesPrediction`, as the network was trained.

        Raises:
            ConfigError: an image that cannot be read (its number, or its file), no images, an option.
        """
        if options:
            raise ConfigError(f"predict takes no {next(iter(options))} of images")
        if errors not in ("raise", "keep"):
            raise ConfigError(f"errors is {errors!r}; it must be raise or keep")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be positive")
        images, rule = image_rows(data, self.inputs.shape[0], column), until_settled(draws)
        if rule is not None and isinstance(self.likelihood, HeteroscedasticGaussian):
            raise ConfigError(
                "draws is auto: numbers are a mixture over draws that all rows share: give a number of draws"
            )
        draws, seed = self.chosen(self.most(rule) if rule else draws, seed)  # type: ignore[arg-type]
        if last_layer and self.posterior.random and not draws:
            raise ConfigError("last_layer=True: draws is 0, which is the mean weights: leave one of them out")
        if not images:
            raise ConfigError("there are no images: give at least one")
        inputs = self.inputs if texts == self.inputs.texts else _with_texts(self.inputs, texts)
        kept: list[int] = []
        failed: dict[int, str] = {}
        parts: list[Any] = []
        ready: Any = self.last_layer(draws, seed) if last_layer else self.ready(draws, seed, lazily=rule is not None)
        with ready as found:
            for first in range(0, len(images), batch_size):
                pixels, places, wrong = inputs.batch(images[first : first + batch_size], first)
                if wrong and errors == "raise":
                    raise ConfigError(next(iter(wrong.values())))
                failed |= {first + place: reason for place, reason in wrong.items()}
                kept += [first + place for place in places]
                if places:
                    parts.append(self._batch(found, pixels, rule))
        return self._answer(parts, kept, len(images), (draws, seed), failed)

    def _batch(self, found: Draws, pixels: Tensor, rule: UntilSettled | None) -> Any:
        if not isinstance(self.likelihood, HeteroscedasticGaussian):
            return predicted(found, [pixels], self.likelihood, rule)
        outputs = [draw for _, draw in found.passes([to_device(pixels, found.device)], range(len(found)))]
        moments = [self.likelihood.moments(draw.cpu()) for draw in outputs]
        return torch.stack([mean for mean, _ in moments]), torch.stack([noise for _, noise in moments])

    def _answer(
        self, parts: list[Any], kept: list[int], count: int, chosen: tuple[int, int], failed: dict[int, str]
    ) -> Prediction:
        told: dict[str, Any] = {"errors": failed, "notes": self.notes, "verdict": self.verdict}
        if isinstance(self.likelihood, HeteroscedasticGaussian):
            shape = (max(chosen[0], 1), 0, len(self.classes))
            means, noises = (torch.cat([part[k] for part in parts], 1) if parts else torch.empty(shape) for k in (0, 1))
            means, noises = (with_gaps(each.transpose(0, 1), kept, count).transpose(0, 1) for each in (means, noises))
            return ValuesPrediction(*chosen, means, noises, self.classes, **told)
        mean, aleatoric = torch.empty(0, len(self.classes)), torch.empty(0)
        if parts:
            whole = type(parts[0]).joined(parts)
            mean, aleatoric = whole.mean, whole.expected_entropy
            if whole.error is not None:
                columns = (whole.draws.double(), whole.error.double())
                told["draws_of_rows"], told["error_of_rows"] = (with_gaps(each, kept, count) for each in columns)
        mean, aleatoric = with_gaps(mean, kept, count), with_gaps(aleatoric, kept, count)
        if isinstance(self.likelihood, MultiLabel):
            return LabelsPrediction(*chosen, mean, aleatoric, self.classes, **told)
        held = self.validation.get("sets")
        return ClassPrediction(*chosen, mean, aleatoric, self.classes, held if isinstance(held, dict) else {}, **told)


def example(description: Mapping[str, Any], section: VisionConfig, where: str) -> Any:
    """A table of one image: grey, of the network's size, as a PNG file's bytes."""
    import io

    import pandas as pd
    from PIL import Image

    channels, height, width = ImageInputs.of(description.get("data") or {}, section.data, where).shape
    grey = np.full((height, width, 3) if channels == 3 else (height, width), 128, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _with_texts(inputs: ImageInputs, texts: Texts) -> ImageInputs:
    return replace(inputs, texts=texts)


def _head(data: dict[str, Any], section: VisionConfig, where: str) -> tuple[tuple[str, ...], nn.Module, int]:
    """Names of what the network tells, its likelihood, and the number of its outputs."""
    names = data.get("class_names")
    count = data.get("classes")
    if not isinstance(names, list) and isinstance(count, int):
        names = [str(k) for k in range(count)]
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{where}: data does not say what the classes are called (class_names)")
    classes = tuple(str(name) for name in names)
    if section.likelihood == "gaussian":
        try:
            location, scale = (torch.tensor(data[key], dtype=torch.float32) for key in ("target_mean", "target_sd"))
            likelihood: nn.Module = HeteroscedasticGaussian(location, scale)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: data.target_mean and target_sd: {error}") from error
        return classes, likelihood, 2 * len(location)
    if section.likelihood == "multi_label":
        return classes, MultiLabel(), len(classes)
    if section.likelihood == "bernoulli":
        return classes, Bernoulli(), 1
    return classes, Categorical(), len(classes)
