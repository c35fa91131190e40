"""Tensors by name in safetensors files: one file of whole tensors, or one of each rank's shards, with an index.

    posterior.safetensors                                        one process
    posterior-00001-of-00002.safetensors, ...-00002-of-00002...  two ranks, each its own rows of every sharded tensor
    posterior.safetensors.index.json                             which rows of a tensor are in which file

Nothing is gathered: a rank writes the shards that it holds, and the first one what is not sharded. Reading takes any number
of ranks: each asks for rows, and only these are read. torch's own writer of such files can put whole tensors together
afterwards, but only where one process sees the files of all; workers of a cluster write into folders of their own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement

from proxscore.config import ConfigError
from proxscore.posterior.tensors import separate
from proxscore.storage import replacing, write

WEIGHTS_FILE = "posterior.safetensors"
INDEX_FILE = "posterior.safetensors.index.json"
DESCRIPTION_FILE = "posterior.json"

#: Key of a word that index and files of one save have in common.
SAVE = "save"
#: Names of the files.
OURS = re.compile(r"posterior(-\d{5,}-of-\d{5,})?\.safetensors")


@dataclass(frozen=True)
class Place:
    """Where a tensor's shards lie: as FSDP2 has them, cut along the first dimension.

    Attributes:
        mesh: of the ranks.
        placements: along its dimensions.
        device: of the shards.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    device: torch.device

    @classmethod
    def on(cls, mesh: DeviceMesh) -> Place:
        """Shards over the last dimension of a mesh, and copies over the one before it, if there is one."""
        return cls(mesh, (*[Replicate()] * (mesh.ndim - 1), Shard(0)), torch.device(mesh.device_type))

    @classmethod
    def of(cls, tensor: DTensor) -> Place:
        """The place of a tensor that is there."""
        return cls(tensor.device_mesh, tuple(tensor.placements), tensor.device)

    def rows(self, shape: tuple[int, ...]) -> slice:
        """The rows of a tensor of this shape that this rank holds."""
        if not shape:
            return slice(0, 1)
        local, offset = compute_local_shape_and_global_offset(torch.Size(shape), self.mesh, self.placements)
        return slice(offset[0], offset[0] + local[0])

    def placed(self, shard: Tensor, shape: tuple[int, ...]) -> DTensor:
        """The tensor of this shape of which this rank holds a shard."""
        stride = torch.empty(shape, device="meta").stride()
        size = torch.Size(shape)
        shard = shard.to(self.device)
        return DTensor.from_local(shard, self.mesh, self.placements, run_check=False, shape=size, stride=stride)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of these tensors lies on several ranks."""
    return any(isinstance(tensor, DTensor) and tensor.device_mesh.size() > 1 for tensor in tensors)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder, each rank its own shards; where any is sharded, every rank must call it.

    Files of another save in the folder are removed.

    Raises:
        OSError, SafetensorError: they cannot be written.
        RuntimeError: another rank could not write; says which, and why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not is_sharded(tensors.values()):
        found = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        _write_file(folder / WEIGHTS_FILE, found)
        _remove_others(folder, [WEIGHTS_FILE])
        return
    first, own = _own_shards(tensors)
    exchanged: list[tuple[str, dict[str, int]]] = [("", {})] * dist.get_world_size()
    dist.all_gather_object(exchanged, (secrets.token_hex(8), first))
    save, ranks = exchanged[0][0], [names for _, names in exchanged]
    writers = [rank for rank, names in enumerate(ranks) if names]
    files = {rank: f"posterior-{k:05}-of-{len(writers):05}.safetensors" for k, rank in enumerate(writers, 1)}
    if len(writers) == 1:
        files = {writers[0]: WEIGHTS_FILE}
    with agreed():
        if own:
            _write_file(folder / files[dist.get_rank()], own, {SAVE: save})
        if dist.get_rank() == 0 and len(writers) > 1:
            pieces = {
                name: {
                    "shape": list(tensor.shape),
                    "rows": {files[r]: ranks[r][name] for r in writers if name in ranks[r]},
                }
                for name, tensor in tensors.items()
            }
            index = {"format": 1, SAVE: save, "files": list(files.values()), "tensors": pieces}
            write(folder / INDEX_FILE, json.dumps(index, indent=1) + "\n")
    if dist.get_rank() == 0:
        _remove_others(folder, list(files.values()))


@contextmanager
def agreed() -> Iterator[None]:
    """Within the context, what one rank raises ends all of them: none waits for one that has gone.

    Raises:
        ConfigError, RuntimeError: what another rank raised.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    mine = None if error is None else (isinstance(error, ConfigError), " ".join(str(error).split()))
    errors: list[tuple[bool, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine)
    if error is not None:
        raise error
    for rank, other in enumerate(errors):
        if other is not None:
            raise ConfigError(other[1]) if other[0] else RuntimeError(f"rank {rank}: {other[1]}")


def _own_shards(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The first row, and the rows, of what this rank writes: of copies those of the first rank count."""
    first: dict[str, int] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            if not all(isinstance(p, Replicate) or (type(p) is Shard and p.dim == 0) for p in tensor.placements):
                place = Place.on(tensor.device_mesh)
                tensor = tensor.redistribute(placements=place.placements)
            coordinate = tensor.device_mesh.get_coordinate()
            assert coordinate is not None
            copies = zip(coordinate, tensor.placements, strict=True)
            mine = all(position == 0 for position, placement in copies if isinstance(placement, Replicate))
            mine = mine and bool((tensor.device_mesh.mesh == 0).any())  # another draw group holds the same
            rows, local = Place.of(tensor).rows(tuple(tensor.shape)), tensor.to_local()
            # A tensor without rows is its first rank's.
            if mine and (rows.stop > rows.start or (not tensor.numel() and dist.get_rank() == 0)):
                first[name], own[name] = rows.start, local
        elif dist.get_rank() == 0:
            first[name], own[name] = 0, tensor
    return first, own


def _write_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    held = separate({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    with replacing(path) as partial:
        save_file(held, partial, metadata)


def _remove_others(folder: Path, files: list[str]) -> None:
    for path in folder.iterdir():
        if (OURS.fullmatch(path.name) and path.name not in files) or (path.name == INDEX_FILE and len(files) == 1):
            path.unlink()
