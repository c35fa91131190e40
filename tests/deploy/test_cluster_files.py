"""Cluster files are what `ray up` accepts, spare what must survive the spot market, fall back on demand, never start open."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from proxscore.config import ConfigError
from proxscore.deploy import check

Config = dict[str, Any]
DEPLOY = Path("platform", "proxscore", "deploy")
FILES = {"aws": Path("cluster.yaml"), "gcp": DEPLOY / "gcp.yaml", "azure": DEPLOY / "azure.yaml"}


@pytest.fixture(params=sorted(FILES))
def file(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / FILES[request.param]


@pytest.fixture
def cluster(file: Path) -> Config:
    config: Config = yaml.safe_load(file.read_text())
    return config


def head_and_workers(cluster: Config) -> tuple[Config, dict[str, Config]]:
    types = cluster["available_node_types"]
    head = cluster["head_node_type"]
    return types[head], {name: each for name, each in types.items() if name != head}


def spot(worker: Config) -> bool:
    """Whether it is of the spot market, as each cloud says it."""
    node = worker["node_config"]
    return (
        node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        or {"preemptible": True} in node.get("scheduling", [])
        or node.get("azure_arm_parameters", {}).get("priority") == "Spot"
    )


def machine(worker: Config) -> str:
    node = worker["node_config"]
    parameters = node.get("azure_arm_parameters", {})
    return str(node.get("InstanceType") or node.get("machineType") or parameters["vmSize"])


def commands(cluster: Config) -> list[str]:
    return [command for key, value in cluster.items() if key.endswith("_commands") for command in value]


def test_rays_validator_accepts_the_file(cluster: Config) -> None:
    validate_config(prepare_config(cluster))


def test_the_head_is_on_demand_and_offers_no_cpu(cluster: Config) -> None:
    head, _ = head_and_workers(cluster)
    assert not spot(head)
    assert head["resources"]["CPU"] == 0


def test_each_of_two_kinds_of_gpu_is_taken_on_spot_before_any_on_demand_from_zero_up(cluster: Config) -> None:
    _, workers = head_and_workers(cluster)
    kinds = {machine(worker) for worker in workers.values()}
    assert len(kinds) == 2
    for market in (True, False):
        assert {machine(worker) for worker in workers.values() if spot(worker) is market} == kinds
    on_demand = max(worker["priority"] for worker in workers.values() if not spot(worker))
    assert all(worker["priority"] > on_demand for worker in workers.values() if spot(worker))
    # Ray weighs priorities among kinds that a request uses equally well.
    assert len({str(worker["resources"]) for worker in workers.values()}) == 1
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["provider"]["cache_stopped_nodes"] is False  # spot machines cannot be stopped


def test_machines_come_from_several_zones_where_ray_can_do_it(cluster: Config) -> None:
    zones = cluster["provider"]["availability_zone"].split(",")
    assert len(zones) == (1 if cluster["provider"]["type"] == "gcp" else 3)


def test_nothing_is_installed_on_a_new_node_and_every_node_has_the_token(cluster: Config) -> None:
    assert not re.search(r"\b(pip|apt|apt-get|conda|uv) ", " ".join(commands(cluster)))
    assert cluster["docker"]["image"].endswith(":0.1.0")
    for role in ("head", "worker"):
        starts = [command for command in cluster[f"{role}_start_ray_commands"] if "ray start" in command]
        assert len(starts) == 1
        assert starts[0].index("export RAY_AUTH_MODE=token;") < starts[0].index("ray start")
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any(re.search(r"chmod 600 .*~/.ray/auth_token", command) for command in cluster["setup_commands"])
    [head_start] = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head_start


def test_runs_and_checkpoints_go_to_a_shared_database_and_a_bucket_and_no_password_stands_there(
    cluster: Config,
) -> None:
    text = " ".join(cluster["head_start_ray_commands"])
    [database] = re.findall(r"--backend-store-uri (\S+)", text)
    assert re.fullmatch(r"postgresql://\w+@[\w-]+:5432/mlflow", database)  # the password is in the file that is mounted
    assert "~/.pgpass" in cluster["file_mounts"]
    assert re.search(r"--artifacts-destination (s3|gs|wasbs)://", text)
    assert re.search(r"export PROXSCORE_STORAGE=(s3|gs|abfss)://", text)
    assert "mlflow server --host 127.0.0.1" in text


def test_all_commands_are_valid_shell(cluster: Config) -> None:
    assert len(commands(cluster)) >= 6
    for command in commands(cluster):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=10)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


def test_the_file_names_no_account(file: Path) -> None:
    text = file.read_text()
    assert not re.findall(r"\b\d{12}\b|\bAKIA\w+", text)  # account numbers, keys
    assert not re.findall(r"\bami-[0-9a-f]{8,}\b", text)  # an image of one region would fail in all others


def changed(file: Path, folder: Path, *edits: tuple[str, str]) -> Path:
    """A copy whose placeholders are filled, with edits, each of the first place."""
    text = re.sub(r"[\w-]*CHANGE-ME", "mine", file.read_text())
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    copy = folder / "mine.yaml"
    copy.write_text(text)
    return copy


def test_the_check_accepts_a_file_with_its_values_and_refuses_one_that_still_has_placeholders(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(changed(file, tmp_path))]) == 0
    assert "in order" in capsys.readouterr().out
    assert check.main([str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "REGISTRY-CHANGE-ME" in line
    assert line.endswith("put your own values there")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "idle_timeout_minutes:",
            "idle_timeout:",
            "idle_timeout is no key of a cluster file; nearest: idle_timeout_minutes",
        ),
        (
            "    min_workers: 0",
            "    min_wokers: 0",
            r"available_node_types\.\w+\.min_wokers is no key of a cluster file; nearest: min_workers",
        ),
        ("    min_workers: 0", "    min_workers: none", r"available_node_types\.\w+\.min_workers: 'none' is not .*"),
        ("  container_name:", "  name:", "docker.name is no key of a cluster file; nearest: image|docker.name .*"),
        ("head_node_type: head", "head_node_type: heat", "`head_node_type` must be one of `available_node_types`."),
        ("max_workers: 4", "max_workers: four", "max_workers: 'four' is not of type 'integer'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_nearest_right_one(
    old: str, new: str, said: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^\S+/mine.yaml: ({said})$"):
        check.check(changed(file, tmp_path, (old, new)))


@pytest.mark.parametrize(
    ("text", "said"), [("- a", "it has no keys"), ("apiVersion: v1", "Kubernetes"), ("a: [", "YAML|pars")]
)
def test_what_is_no_cluster_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        check.check(path)
