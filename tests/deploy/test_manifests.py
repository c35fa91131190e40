"""Kubernetes manifests and the image's recipe: their fields, their pods, and what they have in common with the package."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proxscore import config as configuration

DEPLOY = Path("platform", "proxscore", "deploy")


class Strict(BaseModel):
    """As an API server with strict validation has it: no unknown field, no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PodTemplate(Strict):
    spec: dict[str, Any]  # Kubernetes' own schema has its inside


class AuthOptions(Strict):
    mode: str = Field(pattern="^(token|disabled)$")


class AutoscalerOptions(Strict):
    version: str = Field(pattern="^v[12]$")
    idleTimeoutSeconds: int  # noqa: N815 (KubeRay's name, as those below)
    resources: dict[str, dict[str, str]] = {}


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    priority: int = 0
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)  # noqa: N815
    maxReplicas: int = Field(ge=1)  # noqa: N815


class RayClusterSpec(Strict):
    """The fields of KubeRay 1.7's RayCluster that the manifests use."""

    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class RayJobSpec(Strict):
    """And those of its RayJob."""

    entrypoint: str
    runtimeEnvYAML: str  # noqa: N815
    backoffLimit: int = Field(ge=0)  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int = Field(ge=0)  # noqa: N815
    rayClusterSpec: RayClusterSpec  # noqa: N815


SPECS: dict[str, type[RayClusterSpec] | type[RayJobSpec]] = {"RayCluster": RayClusterSpec, "RayJob": RayJobSpec}


def manifest(repository: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((repository / DEPLOY / f"{name}.yaml").read_text())
    return document


def cluster_of(document: dict[str, Any]) -> RayClusterSpec:
    spec = SPECS[document["kind"]].model_validate(document["spec"])
    return spec if isinstance(spec, RayClusterSpec) else spec.rayClusterSpec


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_manifest_has_kuberays_fields_and_kubernetes_pods(name: str, repository: Path) -> None:
    document = manifest(repository, name)
    assert document["apiVersion"] == "ray.io/v1"
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = cluster_of(document)
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": group.template.spec}
        kubernetes_validate.validate(pod, "1.36", strict=True)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_one_wrong_field_is_refused_by_the_same_schemas(name: str, repository: Path) -> None:
    document = manifest(repository, name)
    document["spec"]["authOption"] = {}
    with pytest.raises(ValidationError, match="authOption"):
        cluster_of(document)
    spec = cluster_of(manifest(repository, name)).headGroupSpec.template.spec
    spec["containers"][0]["imagePulPolicy"] = "Always"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
        kubernetes_validate.validate(pod, "1.36", strict=True)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_clusters_start_with_a_token_scale_from_zero_and_spare_the_head(name: str, repository: Path) -> None:
    cluster = cluster_of(manifest(repository, name))
    assert cluster.authOptions.mode == "token"
    assert cluster.enableInTreeAutoscaling
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    for group in cluster.workerGroupSpecs:
        assert group.minReplicas == 0
        (container,) = group.template.spec["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_spot_nodes_come_first(repository: Path) -> None:
    first, *others = sorted(
        cluster_of(manifest(repository, "raycluster")).workerGroupSpecs, key=lambda group: group.priority, reverse=True
    )
    assert first.groupName == "gpu-spot"
    assert "nodeSelector" in first.template.spec
    assert all("nodeSelector" not in group.template.spec for group in others)


def test_the_job_ends_its_cluster_and_its_command_and_environment_are_the_packages(repository: Path) -> None:
    spec = RayJobSpec.model_validate(manifest(repository, "rayjob")["spec"])
    assert spec.shutdownAfterJobFinishes
    assert set(yaml.safe_load(spec.runtimeEnvYAML)["env_vars"]) == {"MLFLOW_TRACKING_URI", "PROXSCORE_STORAGE"}
    python, job, option, file, *overrides = shlex.split(spec.entrypoint)
    assert (python, option) == ("python", "--config")
    assert (repository / job).is_file()
    config = configuration.load(repository / file, overrides)
    assert config.training.workers == spec.rayClusterSpec.workerGroupSpecs[0].maxReplicas


def test_the_recipe_copies_what_the_package_is_built_from_and_starts_no_cluster_open(repository: Path) -> None:
    text = (repository / DEPLOY / "Dockerfile").read_text()
    parser = DockerfileParser(path=str(repository / DEPLOY / "Dockerfile"))
    assert parser.content == text
    instructions = [(each["instruction"], each["value"]) for each in parser.structure]
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    copied = {source for kind, value in instructions if kind == "COPY" for source in shlex.split(value)[1:-1]}
    assert copied == {
        *("pyproject.toml", project["project"]["readme"], project["tool"]["setuptools"]["package-dir"][""]),
        "jobs",
    }
    assert all((repository / name).exists() for name in copied)
    assert parser.envs["RAY_AUTH_MODE"] == "token"
    assert parser.baseimage.startswith("rayproject/ray:")
    assert not {kind for kind, _ in instructions} - {"COMMENT", "ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV"}


def test_manifests_and_recipe_have_one_version_of_ray(repository: Path) -> None:
    (version,) = {cluster_of(manifest(repository, name)).rayVersion for name in ("raycluster", "rayjob")}
    image = DockerfileParser(path=str(repository / DEPLOY / "Dockerfile")).baseimage
    assert image == f"rayproject/ray:{version}-py311"
