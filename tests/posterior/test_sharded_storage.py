"""Posteriors that the ranks of a sharded module save and read, each its own shards; nothing is gathered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from proxscore.config import ConfigError
from proxscore.inference import Categorical, FullCovariance, Mixture, ProximalScore
from proxscore.posterior import DropoutPosterior, Posterior, Samples, SWAGPosterior, drawn, predict
from proxscore.vision.weights import read_state

ROWS = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
DRAWS = 3
#: Numbers of the largest tensor: no process may make one half as large when a posterior is saved or read in shards.
WIDTH = 64


def network() -> nn.Sequential:
    """Rows of three and of one are shared by four ranks, too: some hold none."""
    torch.manual_seed(0)
    layers = (
        nn.Linear(16, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(WIDTH, WIDTH),
        nn.Linear(WIDTH, 3),
    )
    return nn.Sequential(*layers)


def sharded(world: int) -> nn.Sequential:
    module = network()
    mesh = init_device_mesh("cpu", (world,))
    for layer in (module[0], module[4], module[5], module):
        fully_shard(layer, mesh=mesh)
    return module


def trained(module: nn.Module, **settings: Any) -> ProximalScore:
    optimizer = ProximalScore(module.named_parameters(), 50, initial_precision=100.0, **settings)
    for _ in range(2):
        for _ in optimizer.draws():
            Categorical().nll(module(ROWS[0]), ROWS[1]).mean().backward()
        optimizer.step()
    return optimizer


def fitted(module: nn.Module, **settings: Any) -> Posterior:
    return Posterior.of(module, trained(module, **settings), {"kind of task": "none"})


def swag(module: nn.Module) -> Posterior:
    found = fitted(module)
    deviations = [{name: value * factor for name, value in found.mean.items()} for factor in (0.1, -0.2)]
    return SWAGPosterior(found.mean, found.precision, found.buffers, found.description, deviations=deviations)


def samples(module: nn.Module) -> Posterior:
    found = fitted(module)
    return Samples([found, found.detached()], found.description)


def dropout(module: nn.Module) -> Posterior:
    found = Posterior.of(module)
    return DropoutPosterior(found.mean, {}, found.buffers)


KINDS = {
    "mean field": fitted,
    "samples": samples,
    "swag": swag,
    "dropout": dropout,
    "full covariance of the head": lambda module: fitted(module, families={"5.*": FullCovariance()}),
    "mixture of all": lambda module: fitted(module, families={"*": Mixture(2)}),
}
GATHERS = ("full covariance of the head", "mixture of all")


class Largest(TorchDispatchMode):
    """Notes the numbers of the largest memory that is allocated within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        before = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, Tensor) and type(a) is Tensor}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            own = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.is_floating_point()
            if own and tensor.untyped_storage().data_ptr() not in before:
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@contextmanager
def nothing_gathered() -> Iterator[None]:
    """Within the context, no sharded tensor is made whole, and none as large as the largest of the network."""
    before = DTensor.full_tensor

    def refuse(tensor: DTensor, **_: Any) -> Tensor:
        raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} was gathered")

    DTensor.full_tensor = refuse  # type: ignore[method-assign,assignment]
    try:
        with Largest() as largest:
            yield
    finally:
        DTensor.full_tensor = before  # type: ignore[method-assign]
    assert largest.numbers <= WIDTH * WIDTH // dist.get_world_size(), largest.numbers


def draws(posterior: Posterior) -> list[dict[str, Tensor]]:
    return [posterior.draw(index, seed=4) for index in posterior.indices(DRAWS)]


def wholes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.full_tensor().clone() if isinstance(t, DTensor) else t.clone() for name, t in tensors.items()}


def process(rank: int, world: int, folder: str, action: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous-{action}-{world}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for kind, build in KINDS.items():
        place, module = Path(folder) / kind, sharded(world)
        if action == "save":
            posterior = build(module)
            if kind in GATHERS:
                posterior.save(place)
            else:
                with nothing_gathered():
                    posterior.save(place)
        elif kind in GATHERS or world == 1:
            posterior = Posterior.load(place, like=module)
        else:
            with nothing_gathered():
                posterior = Posterior.load(place, like=module)
        found[kind] = {"draws": [wholes(draw) for draw in draws(posterior)]}
        if action == "load":
            posterior.load_into(module)
        found[kind]["probabilities"] = predict(module, [ROWS], posterior, draws=DRAWS).mean
        drawn.SNAPSHOTS, kept = 0, drawn.SNAPSHOTS  # draws are written into the shards anew
        torch.testing.assert_close(predict(module, [ROWS], posterior, draws=DRAWS).mean, found[kind]["probabilities"])
        drawn.SNAPSHOTS = kept
    if action == "load":  # damage that one rank alone sees ends all
        (module, broken) = sharded(world), Path(folder) / "broken"
        try:
            Posterior.load(broken, like=module)
        except (ConfigError, RuntimeError) as error:
            found["error"] = str(error)
    if rank == 0 or action == "load":
        torch.save(found, f"{folder}/{action}-{world}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(world: int, folder: Path, action: str) -> None:
    mp.start_processes(process, args=(world, str(folder), action), nprocs=world, start_method="forkserver")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of posteriors that two ranks have saved, and what these drew and predicted."""
    folder = tmp_path_factory.mktemp("saved")
    run(2, folder, "save")
    source, broken = folder / "mean field", folder / "broken"
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    second = broken / "posterior-00002-of-00002.safetensors"
    content = bytearray(second.read_bytes())
    content[-64:] = b"\xff" * 64  # NaN in the last rows
    second.write_bytes(bytes(content))
    return folder


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for mine, other in zip(ours["draws"], theirs["draws"], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_draws_what_two_ranks_have_saved(kind: str, saved: Path) -> None:
    expected = torch.load(saved / "save-2-0.pt", weights_only=True)[kind]
    posterior, module = Posterior.load(saved / kind), network()
    same({"draws": draws(posterior)}, expected)
    found = predict(posterior.load_into(module), [ROWS], posterior, draws=DRAWS).mean
    torch.testing.assert_close(found, expected["probabilities"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_read_their_shards_and_draw_the_same(world: int, saved: Path) -> None:
    expected = torch.load(saved / "save-2-0.pt", weights_only=True)
    run(world, saved, "load")
    for rank in range(world):
        found = torch.load(saved / f"load-{world}-{rank}.pt", weights_only=True)
        for kind in KINDS:
            same(found[kind], expected[kind])
            torch.testing.assert_close(found[kind]["probabilities"], expected[kind]["probabilities"])
        assert "is not finite somewhere" in found["error"]


def test_each_rank_has_written_its_share(saved: Path) -> None:
    folder = saved / "mean field"
    files = ["posterior-00001-of-00002.safetensors", "posterior-00002-of-00002.safetensors"]
    index = "posterior.safetensors.index.json"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "posterior.json", index])
    sizes = [(folder / file).stat().st_size for file in files]
    assert sizes[1] > 0.8 * sizes[0]
    described = json.loads((folder / index).read_text())
    assert described["files"] == files
    assert described["tensors"]["precision.4.weight"] == {
        "shape": [WIDTH, WIDTH],
        "rows": dict(zip(files, [0, WIDTH // 2], strict=True)),
    }


def test_one_process_saves_what_it_has_loaded_as_one_file(saved: Path, tmp_path: Path) -> None:
    """And leaves no shards of an earlier save beside it."""
    for path in (saved / "mean field").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    posterior = Posterior.load(tmp_path)
    posterior.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["posterior.json", "posterior.safetensors"]
    same({"draws": draws(Posterior.load(tmp_path))}, {"draws": draws(posterior)})


def test_a_network_starts_from_the_mean_in_shards(saved: Path) -> None:
    expected = Posterior.load(saved / "mean field")
    state = read_state(saved / "mean field")
    assert state.keys() == {*expected.mean, *expected.buffers}
    assert all(torch.equal(state[name], value) for name, value in (expected.mean | expected.buffers).items())


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another save", "index"])
def test_a_damaged_shard_is_named_in_a_line(damage: str, saved: Path, tmp_path: Path) -> None:
    for path in (saved / "mean field").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "posterior-00002-of-00002.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "of another save":
        save_file(load_file(file), file, {"save": "other"})
    else:
        file = tmp_path / "posterior.safetensors.index.json"
        file.write_text(file.read_text().replace(f"{WIDTH}", f"{2**50}"))
    with pytest.raises(ConfigError) as error:
        Posterior.load(tmp_path)
    told = str(error.value)
    assert told.startswith(f"{tmp_path}: damaged posterior: ")
    assert file.name in told
    assert "\n" not in told
