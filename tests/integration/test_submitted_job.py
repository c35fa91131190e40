"""A training job submitted to a real head, as the README says: exit code, logs, and the run in MLflow."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import RayHead

QUICKSTART = ("python", "jobs/train.py", "--config", "jobs/configs/quickstart.yaml")
TINY = (
    "task.model.kwargs={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
    *("task.data.limit=200", "training.batch_size=50", "training.epochs=1", "training.cpus_per_worker=0.5"),
    *("evaluation.draws=2", "baseline=null"),
)


def submit(repository: Path, head: RayHead, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [
        "ray",
        "job",
        "submit",
        "--working-dir",
        ".",
        "--runtime-env",
        "jobs/runtime_env.yaml",
        "--",
        *entrypoint,
    ]
    return subprocess.run(command, cwd=repository, env=head.env, capture_output=True, text=True, timeout=1100)


def test_a_submitted_job_trains_on_the_cluster_and_records_its_run(
    repository: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    places = [f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", f"training.storage={tmp_path / 'runs'}"]
    done = submit(repository, ray_head, *QUICKSTART, *TINY, *places, "name=submitted")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted-proximal_score · step 4/4 (epoch 1.0)" in done.stdout
    lines = done.stdout.splitlines()
    assert "submitted-proximal_score · 2 workers asked, 0 ready" in lines
    assert not [line for line in lines if "pid=" in line or "PreemptionWatcher" in line]
    rows = [line for line in lines if line.startswith("posterior ")][:2]  # of the first table
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["posterior mean", "posterior"]

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.workers"] == "2"
    assert f"{run.data.metrics['test/nll']:.4f}" in rows[1]
    assert len(client.get_metric_history(run.info.run_id, "train/nll")) == 4
    artifacts = {Path(item.path).name for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "figures", "posterior"}
    assert (tmp_path / "runs" / "submitted-proximal_score" / "run.json").is_file()


def test_a_submitted_job_that_is_refused_fails_with_its_one_line(
    repository: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    done = submit(
        repository, ray_head, *QUICKSTART, *TINY, "task.model.name=vit_tiny_patch16_225", f"training.storage={tmp_path}"
    )
    assert done.returncode != 0
    # `ray job submit` repeats the end of the log when a job failed.
    (line,) = {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")}
    assert line.startswith(
        "error: task.model.name is 'vit_tiny_patch16_225', which timm does not know; nearest: vit_tiny"
    )
    assert not list(tmp_path.iterdir())
