"""How images are prepared for a network that starts from pretrained weights: as those weights were trained.

timm keeps mean, std, interpolation and centre crop of each of its weights in ``pretrained_cfg``. What a configuration leaves
open is taken from there, and written into it, so that a saved posterior tells how its inputs were made. A network that starts
from a saved posterior gets its images as that one did.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import timm
import torch

from proxscore.config import ConfigError
from proxscore.posterior.posterior import DESCRIPTION_FILE
from proxscore.vision.models import LOADING, create
from proxscore.vision.task import VisionConfig

log = logging.getLogger(__name__)

PLAIN = {"mean": 0.5, "std": 0.5, "interpolation": "bilinear", "crop": 1.0}
_FIXED = ("bilinear", "bicubic", "lanczos")


def resolved(config: VisionConfig) -> VisionConfig:
    """The section with mean, std, interpolation and crop of its data filled in, where they apply and are left open.

    Raises:
        ConfigError: pretrained weights of a network that timm does not know, or cannot build.
    """
    fields = type(config.data).model_fields
    missing = [name for name in PLAIN if name in fields and getattr(config.data, name) is None]
    if not missing:
        return config
    found: dict[str, Any] = {}
    if config.starts_from_weights:
        found = _of_posterior(config) or _of_timm(_pretrained_cfg(config), getattr(config.data, "channels", 1))
    values = {name: found.get(name, PLAIN[name]) for name in missing}
    if found:
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        log.info("task.data: prepared as the weights of %s were trained: %s", config.model.name, shown)
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def _of_posterior(config: VisionConfig) -> dict[str, Any]:
    """The preparation that a saved posterior's description tells, where the network starts from one."""
    file = config.model.weights and config.model.weights.expanduser() / DESCRIPTION_FILE
    if not file or not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text())["task"]["data"]
        return {name: data[name] for name in PLAIN if data.get(name) is not None}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file}: does not tell how the network's images were prepared: {error}") from error


def _pretrained_cfg(config: VisionConfig) -> dict[str, Any]:
    model = config.model
    own = LOADING & model.kwargs.keys() - {"cache_dir"}
    if timm.is_model(model.name) and not own:
        found = timm.get_pretrained_cfg(model.name)
        return {} if found is None else found.to_dict()
    with torch.device("meta"):
        return dict(getattr(create(model.name, model.kwargs), "pretrained_cfg", None) or {})


def _of_timm(cfg: dict[str, Any], channels: int) -> dict[str, Any]:
    """Our names for timm's values; of grey images, mean and std are the averages over colours."""
    found: dict[str, Any] = {}
    for name in ("mean", "std"):
        values = [float(value) for value in cfg.get(name) or ()]
        if values:
            found[name] = values if len(values) == channels else sum(values) / len(values)
    if cfg.get("interpolation") in _FIXED:
        found["interpolation"] = cfg["interpolation"]
    if cfg.get("crop_pct"):
        found["crop"] = min(float(cfg["crop_pct"]), 1.0)
    return found
