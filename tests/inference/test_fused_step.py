"""The compiled passes are the same formulas: equal to the others but for rounding, and to themselves bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import _random

from proxscore.inference import (
    ForwardKL,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
    Schedule,
    assembled,
    noise,
)
from proxscore.inference.elementwise import normals, philox
from proxscore.inference.kernels import sample_from_key_, why_not
from proxscore.inference.members import Member
from proxscore.inference.parts.shards import Shards
from proxscore.inference.priors import Assignment
from proxscore.inference.step import Draw

WORD = 0xFFFFFFFF
ULPS = 200


@pytest.fixture(autouse=True)
def compiler() -> None:
    if not (shutil.which("g++") or shutil.which("clang++") or "CXX" in os.environ):
        pytest.skip("there is no C++ compiler")
    assert why_not(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    """Those that Random123, the library of its authors, publishes for Philox4x32 with ten rounds."""
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))  # type: ignore[arg-type]
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize("first", [0, 12_345, (1 << 33) + 7])
def test_the_noise_to_compile_is_that_of_torch(first: int) -> None:
    seed = noise.key(3, "draw")
    own = normals(torch.tensor([seed & WORD, seed >> 32, first]), 20_000)
    key = torch.tensor([seed, first], dtype=torch.uint64)
    torch.testing.assert_close(own.flatten(), _random.normal_(key, torch.empty(80_000)), rtol=2e-6, atol=2e-6)


def network(seed: int = 0) -> nn.Sequential:
    """Two large weights, one of which does not end with a counter, and four small ones."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(131, 129), nn.Tanh(), nn.Linear(129, 128), nn.Tanh(), nn.Linear(128, 3))


def trained(
    fused: bool, steps: int, first: int = 0, start: Any = None, **settings: Any
) -> tuple[nn.Module, ProximalScore]:
    """A network after some steps on random rows; ``start``: the state dictionaries to go on from."""
    model = network()
    optimizer = ProximalScore(model.named_parameters(), 200, fused=fused, **settings)
    if start is not None:
        model.load_state_dict(start[0])
        optimizer.load_state_dict(start[1])
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(20, 131, generator=generator), torch.randint(0, 3, (20,), generator=generator)
        for _ in optimizer.draws():
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def states(model: nn.Module, optimizer: ProximalScore) -> dict[str, Tensor]:
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter, state in optimizer.sampled():
        found |= {
            f"{name}.{key}": value for key, value in state.items() if key in ("mean", "precision", "score", "square")
        }
        assert torch.equal(state["mean"], parameter.detach())
    return found


PRIOR_MEAN = {"0.weight": torch.full((129, 131), 0.01)}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "prior mean": {"prior": Prior(mean=PRIOR_MEAN)},
    "pairs": {"paired": True, "draws": 2},
    "draws": {"draws": 2, "max_log_precision_step": None},
    "posterior's metric": {"metric": "posterior", "paired": True, "initial_precision": 0.1},
    "warm-up from nothing": {"penalty": ForwardKL(50.0, precision_schedule=Schedule("linear", length=3))},
    "reverse": {"penalty": ReverseKL(50.0)},
    "quadratic": {"penalty": Quadratic(50.0)},
    "none": {"penalty": NoPenalty(), "max_log_precision_step": 0.1, "metric": "posterior", "paired": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_compiled_step_is_the_other_one_but_for_rounding(name: str) -> None:
    """After four steps within so many units in the last place (2^-24) of each tensor's largest number: single passes differ
    by a few units, which the network's gradients carry on."""
    compiled, plain = (states(*trained(fused, 4, **SETTINGS[name])) for fused in (True, False))
    assert compiled.keys() == plain.keys()
    for key, value in plain.items():
        difference = (compiled[key] - value).abs().max() / value.abs().max()
        assert difference.item() <= ULPS * 2**-24, key
        if key.endswith("0.weight"):
            assert not torch.equal(value, network()[0].weight)


def test_a_compiled_run_is_repeated_bit_for_bit_and_continued_bit_for_bit() -> None:
    straight = trained(True, 6)
    model, optimizer = trained(True, 3)
    saved = model.state_dict(), optimizer.state_dict()
    assert saved[1]["param_groups"][0]["fused"] is True
    for continued in (trained(True, 6), trained(False, 3, first=3, start=saved)):
        assert continued[1].fused  # the state says where it comes from
        for key, value in states(*straight).items():
            assert torch.equal(states(*continued)[key], value), key


def test_a_state_of_the_other_path_goes_on_in_it() -> None:
    model, optimizer = trained(False, 2)
    _, resumed = trained(True, 1, first=2, start=(model.state_dict(), optimizer.state_dict()))
    assert not resumed.fused


@pytest.mark.parametrize("start", [0, 1, 30_003])
def test_a_shards_draw_is_its_piece_of_the_whole_draw(start: int) -> None:
    """Wherever the shard begins and ends among the counters; between is what is compiled."""
    whole, count = torch.full((80_001,), 0.5), 40_001

    def draw(parameter: Tensor, first: int) -> Tensor:
        state: dict[Tensor, dict[str, Any]] = {parameter: {}}
        shards = Shards([Member("weight", parameter, Assignment(True, 1.0), first, 4.0, None)], state, 1, True)
        shards.fused = True
        shards.begin(state)
        shards.sample(Draw(True, 1.0, False, 1, 10.0, 1.0, seed=5))
        drawn = parameter.detach().clone()
        shards.restore()
        assert torch.equal(parameter.detach(), torch.full_like(parameter, 0.5))
        return drawn

    expected = draw(nn.Parameter(whole.clone()), 0)
    assert 0.4 < expected.std() < 0.6
    piece = draw(nn.Parameter(whole[start : start + count].clone()), start)
    torch.testing.assert_close(piece, expected[start : start + count], rtol=1e-6, atol=1e-6)


def test_an_error_in_a_loop_leaves_the_mean_in_the_weights() -> None:
    model, optimizer = trained(True, 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    draws = optimizer.draws()
    next(draws)
    assert not torch.equal(before["0.weight"], next(model.parameters()))
    with pytest.raises(RuntimeError, match="stop"):
        draws.throw(RuntimeError("stop"))  # type: ignore[attr-defined]  # of a generator
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name])


def test_weights_that_somebody_changed_are_the_mean() -> None:
    model, optimizer = trained(True, 2)
    with torch.no_grad():
        model[0].weight.data.fill_(3.0)  # type: ignore[index]  # torch's version counter does not see this
    draws = optimizer.draws()
    next(draws)
    draws.close()
    assert torch.equal(next(model.parameters()).detach(), torch.full((129, 131), 3.0))


def test_small_networks_and_doubles_are_not_compiled() -> None:
    assert not ProximalScore(network().named_parameters(), 10).fused
    assert not ProximalScore(network().double().named_parameters(), 10, fused=True).fused
    assert not ProximalScore(network().named_parameters(), 10, fused=True, keep_mean=False).fused
    assert ProximalScore(nn.Linear(1024, 1024).named_parameters(), 10).fused


def test_a_module_that_is_cast_goes_on_with_its_loaded_state() -> None:
    model, optimizer = trained(True, 2)
    model.double()
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in optimizer.draws():
        model(torch.ones(2, 131, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    assert not optimizer.fused
    assert states(model, optimizer)["0.weight"].dtype == torch.float64


def test_counters_of_steps_stay_on_the_cpu_and_sizes_alone_are_not_compiled_for() -> None:
    """Weights on the meta device stand for those on a GPU: reading a number there would wait for it."""
    _, optimizer = trained(True, 2)
    other = ProximalScore(network().to("meta").named_parameters(), 200, fused=True)
    assert not other.fused
    other.load_state_dict(optimizer.state_dict())
    assert {state["step"].item() for state in other.state.values()} == {2.0}


@pytest.mark.parametrize("fused", [False, True])
def test_a_default_device_that_is_not_the_weights_changes_nothing(fused: bool) -> None:
    model, optimizer = trained(fused, 1)
    x = torch.ones(2, 131)
    with torch.device("meta"):
        for _ in optimizer.draws():
            model(x).square().mean().backward()
        optimizer.step()
    assert all(value.isfinite().all() for value in states(model, optimizer).values())


def test_without_a_compiler_the_step_is_not_compiled_and_says_so() -> None:
    code = (
        "import logging, torch; logging.basicConfig()\n"
        "from proxscore.inference import ProximalScore\n"
        "print(ProximalScore(torch.nn.Linear(1024, 1024).named_parameters(), 10).fused)"
    )
    environment = os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert "the step is not compiled" in done.stderr


def test_a_kernel_that_is_not_compiled_is_the_same() -> None:
    """The function that is compiled, as it is."""
    weights, precision = torch.zeros(5, 4), torch.full((5, 4), 4.0)
    sample_from_key_(weights, torch.ones(5, 4), precision, torch.tensor([1, 2, 3]), remember=False)
    expected = 1 + _random.normal_(torch.tensor([1 + (2 << 32), 3], dtype=torch.uint64), torch.empty(20)) / 2
    torch.testing.assert_close(weights.flatten(), expected)


def build_without_a_compiler_on_one(rank: int, folder: str) -> None:
    """One of two copies of a network, the second of which finds no compiler; what they chose is left in the folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    found: dict[Any, bool] = {}
    for missing in (False, True):
        assembled.why_not = lambda device, missing=missing: "no compiler" if missing and rank == 1 else None
        model = fully_shard(network(), mesh=mesh)
        found[missing] = ProximalScore(model.named_parameters(), 200, fused=True).fused
    row = fully_shard(
        nn.Linear(40_000, 1, bias=False), mesh=init_device_mesh("cpu", (2,))
    )  # all of it on the first rank
    found["one row"] = ProximalScore(row.named_parameters(), 200, fused=True).fused == (rank == 0)
    Path(folder, str(rank)).write_text(repr(found))
    dist.barrier()
    dist.destroy_process_group()


def test_all_copies_of_a_network_take_the_same_path(tmp_path: Path) -> None:
    """Else they would drift apart by their rounding."""
    mp.start_processes(build_without_a_compiler_on_one, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [
        "{False: True, True: False, 'one row': True}"
    ] * 2
