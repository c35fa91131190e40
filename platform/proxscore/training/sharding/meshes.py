"""How workers are arranged: draw groups, replicas, and the shards of one copy of weights and state."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from proxscore.config import Config, ConfigError, MethodSection


@dataclass(frozen=True)
class Meshes:
    """The groups of workers that a worker is part of.

    Attributes:
        fsdp: shards of one copy, or (replicas, shards): what FSDP2 shards over.
        draw: draw groups: workers with the same shards that score different draws; none: there is one group.
    """

    fsdp: DeviceMesh
    draw: DeviceMesh | None

    @property
    def data_rank(self) -> int:
        """The number of the part of a batch that this worker takes, within its draw group."""
        coordinate = self.fsdp.get_coordinate()
        assert coordinate is not None
        return coordinate[0] if self.fsdp.ndim == 1 else coordinate[0] * self.fsdp.size(1) + coordinate[1]

    @property
    def data_world(self) -> int:
        """The number of workers that share a batch."""
        return self.fsdp.size()


def arrangement(config: Config, method: MethodSection, workers: int | None = None) -> tuple[int, int, int]:
    """Divide a method's workers into (draw groups, replicas, shards).

    A method that makes no draws has no use for draw groups: its workers are replicas instead.

    Args:
        workers: how many there are; none: as configured.

    Raises:
        ConfigError: the workers, or the method's draws, cannot be divided like that; names the setting.
    """
    training = config.training
    if training.workers > 1 and not method.shards:
        raise ConfigError(
            f"training.workers={training.workers}: {method.kind} works on one worker; use training.workers=0 or 1"
        )
    copies = training.draw_groups * training.replicate
    workers = workers or max(training.workers, 1)
    if training.min_workers is not None and training.min_workers > training.workers:
        raise ConfigError(
            f"training.min_workers={training.min_workers} is more than training.workers={training.workers}, the most there can be"
        )
    if training.min_workers is not None and copies > 1:
        raise ConfigError(
            f"training.min_workers={training.min_workers}: workers that come and go are shards of one copy; set "
            "training.replicate and training.draw_groups to 1"
        )
    if workers % copies:
        raise ConfigError(
            f"training.workers={training.workers} cannot be divided into training.draw_groups={training.draw_groups} x "
            f"training.replicate={training.replicate} groups: it must be a multiple of {copies}"
        )
    if not method.draw_groups:
        return 1, copies, workers // copies
    draws = getattr(method, "draws", 1)
    if draws % training.draw_groups:
        raise ConfigError(
            f"method.draws={draws} cannot be shared by training.draw_groups={training.draw_groups}: it must be a "
            "multiple of them"
        )
    if training.draw_groups > 1 and config.task.data.streamed:
        raise ConfigError(
            f"training.draw_groups={training.draw_groups}: {config.task.data.kind} is streamed, each row to one worker, but "
            "draw groups need the same rows; use training.replicate"
        )
    return training.draw_groups, training.replicate, workers // copies


def build_meshes(config: Config, method: MethodSection, device: str, world: int) -> Meshes:
    """Make the meshes of this process, one of a process group of so many.

    Shards of a copy are neighbours, which are likely on one machine; draw groups lie farthest apart, as they talk least.
    """
    draws, replicas, shards = arrangement(config, method, world)
    dimensions = {"draw": draws, "replicate": replicas, "shard": shards}
    kept = {name: size for name, size in dimensions.items() if size > 1 or name == "shard"}
    whole = init_device_mesh(device, tuple(kept.values()), mesh_dim_names=tuple(kept))
    return Meshes(
        whole["replicate", "shard"] if replicas > 1 else whole["shard"],
        whole["draw"] if draws > 1 else None,
    )
