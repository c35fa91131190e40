"""What runs and experiments are called in MLflow, and what is said of an experiment on its own page."""

from __future__ import annotations

import re

from proxscore.config import Config

#: Tags of an experiment that is made: its text, and that its runs train models (pages about language models open else).
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": """\
Runs of proxscore. A run is called by its method, its data and its network; the tag `name` is the folder that it is kept in.
A comparison and a sweep are runs, too, and hold their own below them.

| column | what it tells |
|---|---|
| `nll/validation`, `nll/train` | negative log-likelihood (nats) while training; charts open on these |
| `validation/posterior_nll` | of the finished posterior: what to compare runs by, on the same data |
| `test/nll`, `test/ece`, `test/accuracy` | the test split, averaged over draws; `test_mean/...` by the posterior's mean alone |
| tag `verdict` | whether the posterior is converged |
| tag `not_finite` | metrics that are NaN or infinite: MLflow's pages leave those out |

To compare, tick runs and press Compare; Columns adds the columns above. `posterior/`, `time/` and `verdict/` are about the
training itself, `shifted/` about shifted images; each worker's figures are among the system metrics.
""",
}
_DEFAULT = re.compile(r".*-\d{8}-\d{6}")  # a name that was made of the time


def run_name(what: str, config: Config) -> str:
    """What a run is called: its method (or what else it is), data, network, and the configuration's name if a person gave it."""
    parts = [what, config.task.data.kind, config.task.network]
    if config.name and not _DEFAULT.fullmatch(config.name):
        parts.append(config.name)
    return " · ".join(parts)
