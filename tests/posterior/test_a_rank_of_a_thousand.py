"""One rank of 1,024 that train, save, load and predict with a decoder of seven billion numbers: no memory beyond its shards.

The process group is torch's fake one: this rank's shards are real, what other ranks would send is not. Files of the others have
their headers alone, and holes for their numbers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from proxscore.inference import Prior, ProximalScore
from proxscore.posterior import Posterior, predict, shards
from proxscore.training.loop.checkpoint import Snapshot
from proxscore.training.sharding.materialize import materialize
from proxscore.training.sharding.parallelize import blocks

sys.path.append(str(Path(__file__).parents[2] / "jobs" / "studies" / "speed"))
from decoder import SIZES, Decoder, Size  # type: ignore[import-not-found]

RANKS, RANK = 1024, 5
SEVEN_BILLION = SIZES["Llama 2 7B"]
#: As deep, and so narrow that a forward pass takes a second.
NARROW = Size(512, 32, 4, 4, 1376, 2000)


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=RANKS)
    yield init_device_mesh("cpu", (RANKS,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


class Memory(TorchDispatchMode):
    """Refuses memory of more bytes within the context, that of DTensors' local tensors included; notes the largest."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it is taken apart first
        result = function(*arguments, **(named or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if type(tensor) is Tensor and tensor.device.type == "cpu":
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
                assert self.largest <= self.most, f"{function}: {self.largest:,} bytes"
        return result


@contextmanager
def nothing_larger_than(size: float) -> Iterator[Memory]:
    """Within the context, no tensor takes more bytes, and none is made whole."""
    with pytest.MonkeyPatch.context() as patched, Memory(size) as memory:
        patched.setattr(DTensor, "full_tensor", _refuse)
        yield memory
    assert memory.largest > 0


def _refuse(tensor: DTensor, **_: Any) -> Tensor:
    raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} was gathered")


def sharded(size: Size, mesh: Any) -> nn.Module:
    """The decoder in shards, each with the initial weights of its own rows."""
    with torch.device("meta"):
        module = Decoder(size)
    for block in (*blocks(module).values(), module):
        fully_shard(block, mesh=mesh)
    materialize(module, torch.device("cpu"), seed=0)
    return module


def largest_shard(module: nn.Module) -> float:
    """Bytes of a rank's rows of the largest tensor."""
    return max(4.0 * math.ceil(p.shape[0] / RANKS) * p.shape[1:].numel() for p in module.parameters())


def first_rows(module: nn.Module, rank: int) -> dict[str, int]:
    """By tensor of a file the first row that another rank writes; none of those that it has no row of."""
    found = {}
    for name, parameter in module.named_parameters():
        each = math.ceil(parameter.shape[0] / RANKS)
        if rank * each < parameter.shape[0]:
            found |= {f"{group}.{name}": rank * each for group in ("mean", "precision")}
    return found


def others(module: nn.Module, patched: pytest.MonkeyPatch) -> None:
    """Let the other ranks answer what this one asks when it saves or loads: what each of them writes, and that all went well."""

    def answered(found: list[Any], mine: Any) -> None:
        for rank in range(len(found)):
            found[rank] = None if mine is None else (mine[0], first_rows(module, rank))
        if mine is not None:
            assert mine[1] == found[RANK][1]
            found[RANK] = mine

    patched.setattr(dist, "all_gather_object", answered)


def hollow(folder: Path, module: nn.Module, save: str) -> None:
    """The files of the other ranks, with headers as safetensors has them, and the index that the first rank writes."""
    parameters = dict(module.named_parameters())
    ranks = {rank: first for rank in range(RANKS) if (first := first_rows(module, rank))}
    files = {rank: f"posterior-{k:05}-of-{len(ranks):05}.safetensors" for k, rank in enumerate(ranks, 1)}
    tensors: dict[str, Any] = {}
    for rank, first in ranks.items():
        header: dict[str, Any] = {"__metadata__": {shards.SAVE: save}}
        end = 0
        for key, row in first.items():
            shape = parameters[key.partition(".")[2]].shape
            own = min(math.ceil(shape[0] / RANKS), shape[0] - row)
            size = 4 * own * shape[1:].numel()
            header[key] = {"dtype": "F32", "shape": [own, *shape[1:]], "data_offsets": [end, end + size]}
            end += size
            tensors.setdefault(key, {"shape": list(shape), "rows": {}})["rows"][files[rank]] = row
        if rank != RANK:
            text = json.dumps(header).encode()
            with (folder / files[rank]).open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + end)
    index = {"format": 1, shards.SAVE: save, "files": list(files.values()), "tensors": tensors}
    (folder / shards.INDEX_FILE).write_text(json.dumps(index))


def test_a_rank_updates_saves_and_loads_its_shards_of_seven_billion_numbers_alone(
    mesh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nothing_larger_than(math.inf):
        module = sharded(SEVEN_BILLION, mesh)
    numbers = sum(p.numel() for p in module.parameters())
    assert 6.5e9 < numbers < 7e9
    shard = largest_shard(module)
    with nothing_larger_than(shard):
        about = Prior(scale=0.1, mean={name: p.detach().clone() for name, p in module.named_parameters()})
        optimizer = ProximalScore(module.named_parameters(), 1e6, prior=about, initial_precision=100.0, fused=False)
        for _ in optimizer.draws():
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.found_inf = False
        optimizer.step()
        posterior = Posterior.of(module, optimizer)
        held = Snapshot(module, optimizer, {}).state_dict()  # what a checkpoint writes
    assert all(isinstance(weights, DTensor) for weights in held["weights"].values())
    others(module, monkeypatch)
    with nothing_larger_than(shard):
        posterior.save(tmp_path)
    (own,) = tmp_path.glob("*.safetensors")
    assert own.stat().st_size == pytest.approx(2 * 4 * numbers / RANKS, rel=0.03)  # eleven rows of 11,008, not 10.75
    with safe_open(own, framework="pt") as file:
        save = file.metadata()[shards.SAVE]
    hollow(tmp_path, module, save)
    (tmp_path / shards.DESCRIPTION_FILE).write_text(json.dumps(posterior.pack()[0]))
    with nothing_larger_than(shard):
        loaded = Posterior.load(tmp_path, like=module)
    for name, mean in posterior.mean.items():
        assert isinstance(loaded.mean[name], DTensor)
        assert torch.equal(loaded.mean[name].to_local(), mean.to_local())
        assert torch.equal(loaded.precision[name].to_local(), posterior.precision[name].to_local())


def test_a_rank_predicts_with_draws_of_its_shards_and_gathers_a_block_at_a_time(mesh: Any) -> None:
    module = sharded(NARROW, mesh)
    means = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    posterior = Posterior(means, {name: torch.full_like(mean, 1e4) for name, mean in means.items()})
    block = next(iter(blocks(module).values()))
    padded = 4.0 * sum(RANKS * math.ceil(p.shape[0] / RANKS) * p.shape[1:].numel() for p in block.parameters())
    outside = [module.embedding.weight, module.head.weight, module.norm.weight]
    root = 4.0 * sum(RANKS * math.ceil(p.shape[0] / RANKS) * p.shape[1:].numel() for p in outside)
    words = torch.randint(NARROW.words, (1, 4))
    with nothing_larger_than(max(padded, root)):
        predict(module, [words], posterior, draws=2)
    whole = 4.0 * sum(p.numel() for p in module.parameters())
    assert max(padded, root) < whole / 8
