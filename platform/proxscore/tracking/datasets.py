"""The data sets of a run, as MLflow's pages show them: one for each split, with its number of rows and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from proxscore.config import masked

_CONTEXT = "mlflow.data.context"  # MLflow's tag, by which its pages say what a data set was for
_CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


def dataset_inputs(described: Mapping[str, Any], source: Mapping[str, Any]) -> list[DatasetInput]:
    """The splits of a task's data.

    Args:
        described: what the task says of its data (``kind``, ``splits`` with ``counts``, and what tells them apart).
        source: where they lie: the settings of ``task.data``.
    """
    splits = described.get("splits") or {}
    where = masked(json.dumps(source, default=str))
    found = []
    for part, rows in (splits.get("counts") or {}).items():
        digests = splits.get("sha256")
        own = digests.get(part) if isinstance(digests, Mapping) else digests
        digest = hashlib.sha256(f"{described.get('kind')} {part} {own} {described.get('sha256')}".encode()).hexdigest()
        profile = {"rows": rows} | {
            key: described[key] for key in ("classes", "shape", "frequency") if key in described
        }
        dataset = Dataset(
            name=str(described.get("kind")),
            digest=digest[:12],
            source_type="proxscore",
            source=where,
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(dataset, [InputTag(_CONTEXT, _CONTEXTS.get(part, part))]))
    return found
