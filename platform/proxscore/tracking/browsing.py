"""What a person opens to look at a run: an address of MLflow's pages, and what starts them where nothing serves them yet."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from proxscore.config import ConfigError, TrackingConfig, masked
from proxscore.tracking.client import Client
from proxscore.tracking.runs import UNREACHABLE, tracking_uri

HERE = "http://127.0.0.1:5000"  # where `mlflow ui` answers unless it is told otherwise
VIEW = "workflowType=machine_learning"  # the pages open on those about language models else, which show no metrics


def browse(config: TrackingConfig, run_id: str | None = None) -> str:
    """The address of a run's page on a server; of a database, the command that starts MLflow's pages, and below it the address.

    The second line is a comment of the shell, so that both can be pasted. No credentials are shown: a server asks for them.

    Args:
        run_id: of the run; none: the list of all experiments.
    """
    uri = tracking_uri(config)
    page = _page(uri, run_id)
    if uri.startswith(("http://", "https://")):
        return re.sub(r"(?<=//)[^/@]*@", "", uri).rstrip("/") + page
    command = f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {shlex.quote(masked(uri))}"
    return f"{command}\n{'':<10} # then open {HERE}{page}"


def _page(uri: str, run_id: str | None) -> str:
    """The route of a run's page behind a server's address."""
    if run_id is None:
        return f"/#/experiments?{VIEW}"
    try:
        experiment = Client(uri).get_run(run_id).info.experiment_id
    except (*UNREACHABLE, ConfigError):  # away by now: what is shown at the end of a job must not fail it
        return f"/#/experiments?{VIEW}"
    return f"/#/experiments/{experiment}/runs/{run_id}?{VIEW}"
