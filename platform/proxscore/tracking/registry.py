"""The model registry: a version for each run that is to be registered, and an alias for the best of them.

The alias ``champion`` moves only where the validation NLL is lower on the same data: two posteriors are compared if their
validation splits have one fingerprint. Versions carry both as tags.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from proxscore.tracking.client import Client
from proxscore.tracking.located import everywhere

CHAMPION = "champion"
NLL, FINGERPRINT, VERDICT = "validation_nll", "validation_fingerprint", "verdict"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, and what became of the alias.

    Attributes:
        name, version: of the model.
        champion: whether the alias is this version's now.
        reason: why, or why not.
    """

    name: str
    version: str
    champion: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}{f', {CHAMPION}' if self.champion else ''}: {self.reason}"


def register(
    client: Client,
    name: str,
    model_id: str,
    run_id: str,
    validated: Mapping[str, Any],
    tags: Mapping[str, str],
    text: str,
) -> Registered:
    """Register a logged model as a new version, and make it the champion if it is better on the same validation data.

    A run that was registered before under this name, and is continued or repeated, keeps its version.

    Args:
        validated: ``nll`` and ``fingerprint`` of the validation split.
        tags: of the version.
        text: its description.
    """
    try:
        client.create_registered_model(
            name,
            description="Posteriors by proxscore; the alias champion is the best of them by validation NLL: "
            f'`proxscore.load("models:/{name}@champion")`',
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for old in client.search_model_versions(f"name = '{name}'"):
        if old.run_id == run_id and old.tags.get("model_id") == model_id:
            return Registered(name, str(old.version), False, "it was registered before")
    nll, fingerprint = float(validated.get("nll", math.nan)), str(validated.get("fingerprint", ""))
    tags = dict(tags) | {NLL: repr(nll), FINGERPRINT: fingerprint, "model_id": model_id}
    with everywhere(client.uri):
        made = client.create_model_version(
            name, f"models:/{model_id}", run_id=run_id, tags=tags, description=text, model_id=model_id
        )
    link = [
        {"name": name, "version": str(made.version)}
    ]  # what MLflow's own function for it leaves: its pages link by this
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(link)})
    better, reason = _against_champion(client, name, nll, fingerprint)
    if better:
        client.set_registered_model_alias(name, CHAMPION, made.version)
    return Registered(name, str(made.version), better, reason)


def _against_champion(client: Client, name: str, nll: float, fingerprint: str) -> tuple[bool, str]:
    if not math.isfinite(nll):
        return False, "its validation NLL is not known"
    model = client.get_registered_model(name)
    if CHAMPION not in model.aliases:
        return True, f"the first, with validation NLL {nll:.4f}"
    champion = client.get_model_version_by_alias(name, CHAMPION)
    who = f"version {champion.version}"
    if champion.tags.get(FINGERPRINT) != fingerprint:
        return False, f"the champion stays {who}, which was judged on other validation data: move the alias yourself"
    try:
        old = float(champion.tags[NLL])
    except (KeyError, ValueError):
        return False, f"the champion stays {who}, whose validation NLL is not known: move the alias yourself"
    if nll < old:
        return True, f"validation NLL {nll:.4f}, before {old:.4f} of {who}"
    return False, f"the champion stays {who}: validation NLL {old:.4f} against {nll:.4f}"
