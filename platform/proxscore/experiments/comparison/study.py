"""The MLflow run of a comparison: parent of its cells' runs, and the same one when the comparison goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.comparison import records
from proxscore.experiments.comparison.plan import Plan, slug
from proxscore.experiments.comparison.settings import SPLIT_SEED, ComparisonConfig
from proxscore.storage import write
from proxscore.tracking import TrackedRun
from proxscore.tracking.names import run_name
from proxscore.tracking.runs import check_server, source_tags

MEMORY = "comparison.json"


def finished(plan: Plan) -> bool:
    """Whether the comparison was recorded to its end, as far as its cells went then."""
    file = plan.folder / MEMORY
    return file.exists() and bool(json.loads(file.read_text()).get("finished"))


def run_of(plan: Plan) -> str | None:
    """The MLflow run of the comparison; none: it has not begun."""
    file = plan.folder / MEMORY
    return str(json.loads(file.read_text())["run_id"]) if file.exists() else None


@contextmanager
def recorded(plan: Plan, comparison: ComparisonConfig) -> Iterator[TrackedRun]:
    """The run, RUNNING within the context.

    Raises:
        ConfigError: before anything is written: a cell was finished with other settings, or the server is away.
    """
    for cell in plan.possible():
        records.finished(cell)
    config = plan.config
    uri = config.tracking.uri
    assert uri is not None
    check_server(uri)
    file = plan.folder / MEMORY
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        named = run_name("comparison", config.model_copy(update={"name": plan.name}))
        tracked = TrackedRun(uri, config.tracking.experiment, named, run_of(plan))
        write(file, json.dumps({"run_id": tracked.run_id}) + "\n")
    except OSError as error:
        raise ConfigError(f"training.storage {config.training.storage}: cannot be written: {error}") from error
    with tracked.running():
        common: dict[str, Any] = {
            key: value
            for key, value in configuration.flatten(config).items()
            if not key.startswith(("method.", "baseline", "seed", "training.epochs"))
        }
        common |= {"budget": comparison.budget, "seeds": comparison.seeds, "gradient_evaluations": plan.evaluations}
        if plan.split_by_seed:
            del common[f"task.data.{SPLIT_SEED}"]
            common["split_by_seed"] = True
        methods = {
            f"methods.{slug(name)}": json.dumps(entry.model_dump()) for name, entry in comparison.methods.items()
        }
        tracked.describe(common, source_tags() | methods | {"name": plan.name})
        yield tracked
    write(file, json.dumps({"run_id": tracked.run_id, "finished": True}) + "\n")
