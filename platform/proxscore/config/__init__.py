"""The typed configuration: one tree, read once, from YAML and dotted overrides.

    config = load("jobs/configs/quickstart.yaml", ["training.epochs=3", "task.model.name=resnet18"])

Every key that the tree does not know is refused in one line that names the nearest valid key; so is every value of a
wrong type. Nothing else in the package reads configuration files or environment variables for settings. The section of a
component (a method, a family, a task, a source of data) lies beside the component; :mod:`proxscore.config.components` says
where. What is imported from here is looked up when it is asked for: the errors alone need neither pydantic nor PyYAML.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxscore.config.components import (
        FAMILIES,
        IMAGE_SOURCES,
        METHODS,
        PENALTIES,
        POINT_METHODS,
        SERIES_SOURCES,
        TASKS,
        DataSection,
        MethodSection,
        TaskSection,
        around,
    )
    from proxscore.config.cost import CostConfig
    from proxscore.config.credentials import MASK, masked
    from proxscore.config.errors import ConfigError, DivergedError, MethodError
    from proxscore.config.reading import dump, flatten, load, parse, plain, read, validated, with_value
    from proxscore.config.registry import Built, Component, Registry
    from proxscore.config.root import Config
    from proxscore.config.section import Section, expanded
    from proxscore.config.training import (
        MAX_DRAWS,
        MAX_EPOCHS,
        MAX_SEED,
        EvaluationConfig,
        TrackingConfig,
        TrainingConfig,
    )
    from proxscore.config.yaml_text import dump_yaml

__all__ = [
    "FAMILIES",
    "IMAGE_SOURCES",
    "MASK",
    "MAX_DRAWS",
    "MAX_EPOCHS",
    "MAX_SEED",
    "METHODS",
    "PENALTIES",
    "POINT_METHODS",
    "SERIES_SOURCES",
    "TASKS",
    "Built",
    "Component",
    "Config",
    "ConfigError",
    "CostConfig",
    "DataSection",
    "DivergedError",
    "EvaluationConfig",
    "MethodError",
    "MethodSection",
    "Registry",
    "Section",
    "TaskSection",
    "TrackingConfig",
    "TrainingConfig",
    "around",
    "dump",
    "dump_yaml",
    "expanded",
    "flatten",
    "load",
    "masked",
    "parse",
    "plain",
    "read",
    "validated",
    "with_value",
]

_MODULES = {
    "components": (
        "FAMILIES",
        "IMAGE_SOURCES",
        "METHODS",
        "PENALTIES",
        "POINT_METHODS",
        "SERIES_SOURCES",
        "TASKS",
        "DataSection",
        "MethodSection",
        "TaskSection",
        "around",
    ),
    "cost": ("CostConfig",),
    "credentials": (
        "MASK",
        "masked",
    ),
    "reading": (
        "dump",
        "flatten",
        "load",
        "parse",
        "plain",
        "read",
        "validated",
        "with_value",
    ),
    "registry": (
        "Built",
        "Component",
        "Registry",
    ),
    "root": ("Config",),
    "errors": (
        "ConfigError",
        "DivergedError",
        "MethodError",
    ),
    "section": (
        "Section",
        "expanded",
    ),
    "training": (
        "MAX_DRAWS",
        "MAX_EPOCHS",
        "MAX_SEED",
        "EvaluationConfig",
        "TrackingConfig",
        "TrainingConfig",
    ),
    "yaml_text": ("dump_yaml",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = found
    return found
