"""cluster.yaml is what `ray up` accepts, keeps what must survive off the spot market, and never starts open."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

Config = dict[str, Any]


@pytest.fixture
def cluster(repository: Path) -> Config:
    config: Config = yaml.safe_load((repository / "cluster.yaml").read_text())
    return config


def head_and_workers(cluster: Config) -> tuple[Config, list[Config]]:
    types = cluster["available_node_types"]
    head = cluster["head_node_type"]
    return types[head], [each for name, each in types.items() if name != head]


def commands(cluster: Config) -> list[str]:
    return [command for key, value in cluster.items() if key.endswith("_commands") for command in value]


def test_rays_validator_accepts_the_file(cluster: Config) -> None:
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout",), 5),  # an unknown key, at the top and in a kind of machine
        (("available_node_types", "gpu_spot", "spot"), True),
        (("available_node_types", "gpu_spot", "min_workers"), "none"),
        (("head_node_type",), "heat"),
    ],
)
def test_rays_validator_rejects_the_file_with_one_mistake(
    cluster: Config, path: tuple[str, ...], value: object
) -> None:
    broken = copy.deepcopy(cluster)
    section = broken
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(broken))


def test_the_head_is_on_demand_and_offers_no_cpu(cluster: Config) -> None:
    head, _ = head_and_workers(cluster)
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0


def test_workers_are_spot_machines_from_zero_up(cluster: Config) -> None:
    _, workers = head_and_workers(cluster)
    assert workers
    for worker in workers:
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= cluster["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["provider"]["cache_stopped_nodes"] is False  # spot machines cannot be stopped


def test_every_node_starts_with_token_authentication_and_has_the_token(cluster: Config) -> None:
    for role in ("head", "worker"):
        starts = [command for command in cluster[f"{role}_start_ray_commands"] if "ray start" in command]
        assert len(starts) == 1
        assert starts[0].index("export RAY_AUTH_MODE=token;") < starts[0].index("ray start")
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["initialization_commands"])
    [head_start] = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head_start


def test_what_the_nodes_install_is_copied_to_them(cluster: Config, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    [target] = re.findall(r"pip install \S.* -e (\S+)", " ".join(cluster["setup_commands"]))
    needed = {"pyproject.toml", project["project"]["readme"], project["tool"]["setuptools"]["package-dir"][""]}
    for local in needed:
        assert cluster["file_mounts"][f"{target}/{local}"] == local
        assert (repository / local).exists()


def test_all_commands_are_valid_shell(cluster: Config) -> None:
    assert len(commands(cluster)) >= 8
    for command in commands(cluster):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=10)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


def test_the_file_names_no_account(repository: Path) -> None:
    text = (repository / "cluster.yaml").read_text()
    assert not re.findall(r"\b\d{12}\b|\bAKIA\w+", text)  # account numbers, keys
    assert not re.findall(r"\bami-[0-9a-f]{8,}\b", text)  # an image of one region would fail in all others
