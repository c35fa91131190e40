"""A posterior as an MLflow model: ``mlflow.pyfunc.load_model("models:/NAME@champion").predict(table)``.

Its input is a table: of images a column ``image`` (encoded bytes, their base64, or arrays as lists), of series a row per
series and time. Its answer is the table of :meth:`proxscore.tasks.predictions.Prediction.to_frame`: a row that cannot be
predicted has its reason in ``error``, and nulls. Parameters are ``draws``, ``seed``, ``return`` (``summary``, or ``all`` with a
column for each class) and ``quantiles``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from proxscore.config import ConfigError
from proxscore.predictor.opening import opened
from proxscore.tasks.predictions import QUANTILES
from proxscore.tasks.predictor import DRAWS, Predictor

ARTIFACT = "posterior"
RETURNS = ("summary", "all")
log = logging.getLogger(__name__)


class PosteriorModel(PythonModel):
    """Opens the posterior that lies in the model, and predicts with it."""

    predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        """Read the posterior; what is to be known before its numbers are trusted is logged once."""
        self.predictor = opened(Path(context.artifacts[ARTIFACT]))
        for note in self.predictor.notes:
            log.warning("%s", note)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Predict a table; see the module.

        Raises:
            ConfigError: a parameter that makes no sense, or a series at fault.
        """
        return answer(self.predictor, model_input, params or {})


def answer(predictor: Predictor, table: Any, params: Mapping[str, Any]) -> pd.DataFrame:
    """The answer to a table of inputs, with nulls in place of what is not known.

    Raises:
        ConfigError: as :meth:`PosteriorModel.predict`.
    """
    wanted = params.get("return", "summary")
    if wanted not in RETURNS:
        raise ConfigError(f"return is {wanted!r}; it must be one of {', '.join(RETURNS)}")
    draws, seed = params.get("draws"), params.get("seed")
    options: dict[str, Any] = {"errors": "keep", "texts": "base64"} if predictor.takes == "images" else {}
    prediction = predictor.predict(
        table, None if draws is None else int(draws), None if seed is None else int(seed), **options
    )
    frame = prediction.to_frame(all=wanted == "all", quantiles=[float(q) for q in params.get("quantiles", QUANTILES)])
    if not frame.isna().to_numpy().any():
        return frame
    return frame.astype(object).where(frame.notna(), None)


def signature(takes: str, columns: list[str], validation: Mapping[str, Any]) -> ModelSignature:
    """What the model takes: these columns, of any type, and its parameters with their defaults.

    Args:
        takes: images or series.
        columns: of its table.
        validation: what the posterior was saved with: the number and the seed of draws that it was judged by.
    """
    params = [
        ParamSpec("draws", DataType.long, int(validation.get("draws") or DRAWS)),
        ParamSpec("seed", DataType.long, int(validation.get("seed", 0))),
        ParamSpec("return", DataType.string, RETURNS[0]),
        ParamSpec("quantiles", DataType.double, list(QUANTILES), shape=(-1,)),
    ]
    return ModelSignature(inputs=Schema([ColSpec(AnyType(), name) for name in columns]), params=ParamSchema(params))
