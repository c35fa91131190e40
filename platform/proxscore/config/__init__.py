"""The typed configuration: one tree, read once, from YAML and dotted overrides.

    config = load("jobs/configs/quickstart.yaml", ["training.epochs=3", "task.model.name=resnet18"])

Every key that the tree does not know is refused in one line that names the nearest valid key; so is every value of a
wrong type. Nothing else in the package reads configuration files or environment variables for settings. The section of a
component (a method, a family, a task, a source of data) lies beside the component; :mod:`proxscore.config.components` says
where.
"""

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
from proxscore.config.reading import dump, flatten, load, parse, plain, read, validated, with_value
from proxscore.config.registry import Built, Component, Registry
from proxscore.config.root import Config
from proxscore.config.section import ConfigError, DivergedError, MethodError, Section, expanded
from proxscore.config.training import MAX_DRAWS, MAX_EPOCHS, MAX_SEED, EvaluationConfig, TrackingConfig, TrainingConfig
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
