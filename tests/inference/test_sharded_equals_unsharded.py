"""The same small Vision Transformer whole in one process, under FSDP2 on 1, 2 and 4 gloo ranks, and in draw groups.

Four processes run everything: as one group of four, as two groups of two that do the same, and as four groups of one.
The noise is keyed by global index, so that everything agrees to rounding in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from proxscore.inference import (
    Categorical,
    ForwardKL,
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    Mixture,
    Prior,
    ProximalScore,
    Quadratic,
)
from proxscore.inference.initial import bearable_noise
from proxscore.posterior import Posterior, predict

RANKS, ROWS, STEPS = 4, 14, 3  # 14 rows: ranks have unequal parts of a batch
MODES: dict[str, dict[str, Any]] = {
    "paired": {},
    "unpaired": {"paired": False},
    "two draws": {"draws": 2},
    "no separate mean": {"keep_mean": False},
    "full covariance": {"families": {"head.*": FullCovariance()}},
    # On shards; the rest of the network is mean-field, in closed form.
    "low rank": {"families": {"blocks.*": LowRank(3)}, "solver": None},
    "mixture": {"families": {"blocks.0.*": Mixture(2), "head.*": Mixture(3)}, "paired": False},
    "kronecker": {"families": {"head.weight": Kronecker()}},
    "gradient solver": {"solver": GradientSolver(inner_steps=2), "penalty": Quadratic(20.0, 2.0)},
}
DRAWS: dict[str, dict[str, Any]] = {  # modes that draw groups divide between them
    "two pairs": {"draws": 2},
    "four draws": {"draws": 4, "paired": False},
    "two pairs, full covariance": {"draws": 2, "families": {"head.*": FullCovariance()}},
    "two pairs, gradient solver": {
        "draws": 2,
        "families": {"blocks.*": LowRank(3), "head.weight": Kronecker(), "norm.*": Mixture(2)},
        "solver": GradientSolver(inner_steps=2),
        "penalty": ForwardKL(20.0, 2.0),  # sampled, for the mixture
    },
}
MODES |= DRAWS
# Two by two: shards of two, with replicas, or with two groups that score different draws. Not every mode on every layout:
# the processes share few cores.
LAYOUTS = {
    "1 rank": ["paired"],
    "2 ranks": ["paired", "unpaired", "low rank"],
    "4 ranks": [mode for mode in MODES if mode not in DRAWS],
    "2 x 2 ranks": ["paired"],
    "2 draw groups of 2 ranks": [*DRAWS],
    "4 draw groups": ["four draws"],
}
# First dimensions that four does not divide: 10 classes, 17 positions, one class token (three ranks hold none of it).
SETTINGS = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2)
Trained = tuple[nn.Module, torch.optim.Optimizer]


def network(mesh: DeviceMesh | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SETTINGS).double()
    if mesh is not None:
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def proximal(model: nn.Module, **settings: Any) -> ProximalScore:
    """Sampled, flat and point-estimated parameters, and a prior mean that is not zero."""
    prior = Prior(norms="flat", biases="point", mean={"head.weight": torch.linspace(-0.1, 0.1, 320).view(10, 32)})
    settings = {"penalty": ForwardKL(precision=20.0, mean=2.0), "initial_precision": 0.2} | settings
    return ProximalScore(
        model.named_parameters(),
        500,
        prior=prior,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (ROWS,), generator=generator)


def backward(model: nn.Module, step: int, rank: int = 0, ranks: int = 1) -> None:
    """FSDP2 averages gradients over ranks: sums are scaled so that the average is the gradient of the batch's mean."""
    x, y = (values.tensor_split(ranks)[rank] for values in batch(step))
    (Categorical().nll(model(x), y).sum() * ranks / ROWS).backward()


def train(model: nn.Module, optimizer: ProximalScore, steps: range, rank: int = 0, ranks: int = 1) -> None:
    for step in steps:
        for _ in optimizer.draws():
            backward(model, step, rank, ranks)
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def numbers(model: nn.Module, optimizer: ProximalScore) -> dict[str, Tensor]:
    """Weights and all of the optimizer's state, gathered."""
    result = {}
    optimizer.state_dict()  # blocks write their state when it is asked for
    for name, parameter in model.named_parameters():
        result[name] = whole(parameter)
        held = {key: value for key, value in optimizer.state[parameter].items() if not of_a_block(key, value)}
        result |= {f"{name}.{key}": whole(value) for key, value in held.items()}
    return result


def of_a_block(key: str, value: Tensor) -> bool:
    """What convergence is judged by, of a block: over shards it is not saved."""
    return key == "probes" and value.ndim == 1


def prediction(model: nn.Module, optimizer: ProximalScore) -> Tensor:
    posterior = Posterior.of(model, optimizer)
    return predict(model, lambda: [batch(20), batch(21)], posterior, draws=2, seed=5).log_probabilities


def run(mesh: DeviceMesh | None, settings: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Train, predict in between, train on; then draw. Everything gathered."""
    model = network(mesh)
    optimizer = proximal(model, **settings)
    train(model, optimizer, range(STEPS - 1), rank, ranks)
    predicted = prediction(model, optimizer)
    train(model, optimizer, range(STEPS - 1, STEPS), rank, ranks)
    posterior = Posterior.of(model, optimizer)
    return {
        "state": numbers(model, optimizer),
        "prediction": predicted,
        "draw": {name: whole(value) for name, value in posterior.draw(3, seed=9).items()},
    }


# ------------------------------------------------------------ what the four processes do


def meshes() -> dict[str, DeviceMesh]:
    result = {"2 x 2 ranks": init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))}
    for size in (1, 2, 4):
        mesh = init_device_mesh("cpu", (RANKS // size, size), mesh_dim_names=(f"copies{size}", f"shard{size}"))
        result[f"{size} rank" + "s" * (size > 1)] = mesh[f"shard{size}"]
    return result


def adamw(clip: bool) -> Callable[[DeviceMesh], Callable[[int], None]]:
    def prepare(mesh: DeviceMesh) -> Callable[[int], None]:
        model = network(mesh)
        optimizer = torch.optim.AdamW(model.parameters())

        def step(rank: int) -> None:
            backward(model, 0, rank, RANKS)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return prepare


def ours(decided: bool, **settings: Any) -> Callable[[DeviceMesh], Callable[[int], None]]:
    """``decided``: the training loop has settled whether the step is skipped, with the loss it reduces anyway."""

    def prepare(mesh: DeviceMesh) -> Callable[[int], None]:
        model = network(mesh)
        optimizer = proximal(model, **settings)

        def step(rank: int) -> None:
            for _ in optimizer.draws():
                backward(model, 0, rank, RANKS)
            if decided:
                optimizer.found_inf = False
            optimizer.step()

        return step

    return prepare


COUNTED = {
    "adamw": adamw(clip=False),
    "adamw clipped": adamw(clip=True),
    "unpaired decided": ours(True, paired=False),
    "unpaired": ours(False, paired=False),
    "paired decided": ours(True),
}


def collectives(mesh: DeviceMesh, rank: int) -> dict[str, Counter[str]]:
    """Collectives of a step, by kind and by what is counted."""
    result = {}
    for name, prepare in COUNTED.items():
        step = prepare(mesh)
        with CommDebugMode() as mode:
            step(rank)
        result[name] = Counter({str(kind): count for kind, count in mode.get_comm_counts().items()})
    return result


def draw_collectives(groups: DeviceMesh, settings: dict[str, Any]) -> Counter[str]:
    """Collectives of a step of a draw group, beside those of its forward and backward passes."""
    model = network(groups["shard"])
    optimizer = proximal(model, **settings)
    for _ in optimizer.draws():
        backward(model, 0, groups["shard"].get_local_rank(), 2)
    optimizer.found_inf = False
    with CommDebugMode() as mode:
        optimizer.step()
    return Counter({str(kind): count for kind, count in mode.get_comm_counts().items() if count})


def skipped_by_one_rank(mesh: DeviceMesh, rank: int) -> dict[str, Any]:
    """A number that is not finite turns up in the shard of the last rank alone."""
    model = network(mesh)
    optimizer = proximal(model)
    before = numbers(model, optimizer)
    for _ in optimizer.draws():
        backward(model, 0, rank, RANKS)
        if rank == RANKS - 1:
            gradient = model.head.weight.grad
            assert isinstance(gradient, DTensor)
            gradient.to_local()[0, 0] = float("nan")
    optimizer.step()
    return {"before": before, "after": numbers(model, optimizer), "skipped": optimizer.param_groups[0]["skipped"]}


def checkpoint(mesh: DeviceMesh, rank: int) -> dict[str, Any]:
    """The full state after all steps but the last."""
    model = network(mesh)
    optimizer = proximal(model)
    train(model, optimizer, range(STEPS - 1), rank, RANKS)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": model_state, "optimizer": optimizer_state}


def measured_noise(mesh: DeviceMesh | None, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """What a network bears, and the losses that it was judged by; trained parameters as before."""
    model = network(mesh)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    seen: list[float] = []

    def losses() -> Iterator[Tensor]:
        for step in range(2):
            inputs, targets = (values.tensor_split(world)[rank] for values in batch(step))
            loss = nn.functional.cross_entropy(model(inputs), targets, reduction="sum") * world / ROWS
            seen.append(loss.item())
            yield loss

    found = bearable_noise(model, losses, 20.0, seed=3)
    unchanged = all(
        isinstance(p, DTensor) == (mesh is not None) and torch.equal(whole(p), whole(b))
        for p, b in zip(model.parameters(), before, strict=True)
    )
    average = torch.tensor(seen, dtype=torch.float64)
    if mesh is not None:
        dist.all_reduce(average)
        average /= world
    return {"noise": found, "losses": average, "unchanged": unchanged}


def gathered(mesh: DeviceMesh, rank: int) -> str:
    """An optimizer that was made of what a forward without backward left gathered."""
    model = network(mesh)
    with torch.no_grad():
        model(batch(0)[0].tensor_split(RANKS)[rank])
    optimizer = proximal(model)
    try:
        train(model, optimizer, range(1), rank, RANKS)
    except RuntimeError as error:
        return str(error)
    return "accepted"


def refusal(mesh: DeviceMesh) -> str:
    """A parameter sharded along its second dimension."""
    model = nn.Linear(8, 8)
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: torch.distributed.tensor.Shard(p.ndim - 1))
    try:
        ProximalScore(model.named_parameters(), 10, metric="posterior", initial_precision=0.1, paired=True)
    except ValueError as error:
        return str(error)
    return "accepted"


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    results: dict[str, Any] = {}
    found = meshes()
    for layout, mesh in found.items():
        local = rank if mesh.ndim == 2 else mesh.get_local_rank()
        for mode in LAYOUTS[layout]:
            results[f"{layout}, {mode}"] = run(mesh, MODES[mode], local, mesh.size())
    groups = init_device_mesh("cpu", (2, 2), mesh_dim_names=("draw", "shard"))
    for mode in DRAWS:
        settings = MODES[mode] | {"draw_mesh": groups["draw"]}
        results[f"2 draw groups of 2 ranks, {mode}"] = run(
            groups["shard"], settings, groups["shard"].get_local_rank(), 2
        )
    alone = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("draw",))
    results["4 draw groups, four draws"] = run(None, MODES["four draws"] | {"draw_mesh": alone})
    results["collectives of draw groups"] = {
        mode: draw_collectives(groups, MODES[mode] | {"draw_mesh": groups["draw"]}) for mode in DRAWS
    }
    four = found["4 ranks"]
    results["collectives"] = collectives(four, rank)
    results["skipped"] = skipped_by_one_rank(four, rank)
    results["checkpoint"] = checkpoint(four, rank)
    results["refusal"] = refusal(four)
    results["noise"] = measured_noise(four, rank, RANKS)
    results["gathered"] = gathered(four, rank)
    try:
        ProximalScore(
            nn.Linear(2, 2).named_parameters(),
            10,
            draws=3,
            draw_mesh=groups["draw"],
            metric="posterior",
            initial_precision=0.1,
            paired=True,
        )
    except ValueError as error:
        results["uneven draws"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# ------------------------------------------------------------ what comes of it


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    # The server imports once what all ranks need.
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> Iterator[dict[str, dict[str, Any]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {mode: run(None, settings) for mode, settings in MODES.items()}
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("layout", "mode"), [(layout, mode) for layout in LAYOUTS for mode in LAYOUTS[layout]])
def test_training_prediction_and_draws_do_not_depend_on_the_sharding(
    ranks: list[dict[str, Any]], alone: dict[str, dict[str, Any]], layout: str, mode: str
) -> None:
    """Mean, precision, momentum, Adam's moments, predictive and a posterior draw: to 1e-9, on every rank."""
    for results in ranks:
        torch.testing.assert_close(results[f"{layout}, {mode}"], alone[mode], rtol=1e-9, atol=1e-9)


def test_training_has_moved_everything(alone: dict[str, dict[str, Any]]) -> None:
    """So that agreement means something."""
    model = network()
    before = numbers(model, proximal(model))
    for name, value in alone["paired"]["state"].items():
        if name.endswith((".prior_mean", ".step", ".probes")):
            continue
        assert (value != before[name]).float().mean() > 0.6, name


def test_a_step_costs_the_collectives_of_plain_training(ranks: list[dict[str, Any]]) -> None:
    """Unpaired: exactly those of AdamW; a pair: exactly twice. Where the step itself has to agree on
    skipping: one all-reduce more, which AdamW needs for clipping gradients too."""
    for results in ranks:
        counts: dict[str, Counter[str]] = results["collectives"]
        plain = counts["adamw"]
        # FSDP2's own are seen: three units (two blocks and the root), gathered forward and, but for the root, backward.
        assert plain == {"c10d._allgather_base_": 5, "c10d._reduce_scatter_base_": 3}
        assert counts["unpaired decided"] == plain
        assert counts["paired decided"] == {kind: 2 * count for kind, count in plain.items()}
        assert counts["unpaired"] - plain == {"c10d.allreduce_": 1}
        assert counts["unpaired"].total() == counts["adamw clipped"].total()


@pytest.mark.parametrize("mode", ["two pairs", "four draws"])
def test_draw_groups_agree_by_one_message_in_a_step(ranks: list[dict[str, Any]], mode: str) -> None:
    """Scores and curvatures of all parameters travel together: one all-reduce of the local shards."""
    for results in ranks:
        assert results["collectives of draw groups"][mode] == {"c10d.allreduce_": 1}


def test_draws_that_the_groups_cannot_share_equally_are_refused(ranks: list[dict[str, Any]]) -> None:
    expected = "draws is 3; it must be a multiple of the number of draw groups, 2"
    assert all(results["uneven draws"] == expected for results in ranks)


def test_all_ranks_skip_a_step_that_one_finds_not_finite(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        result = results["skipped"]
        assert result["skipped"] == 1
        for name, value in result["after"].items():
            if not name.endswith(".score"):
                assert torch.equal(value, result["before"][name]), name


def test_a_checkpoint_of_four_ranks_continues_in_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, dict[str, Any]]
) -> None:
    saved = ranks[0]["checkpoint"]
    model = network()
    optimizer = proximal(model)
    torch.distributed.checkpoint.state_dict.set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
    )
    train(model, optimizer, range(STEPS - 1, STEPS))
    torch.testing.assert_close(numbers(model, optimizer), alone["paired"]["state"], rtol=1e-9, atol=1e-9)


def test_a_sharding_that_cannot_be_sampled_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert "weight is placed as Shard(dim=1)" in ranks[0]["refusal"]


def test_the_noise_that_a_network_bears_does_not_depend_on_the_sharding(ranks: list[dict[str, Any]]) -> None:
    """The same losses of the same draws: also of the root's weights, which a forward without backward leaves gathered."""
    expected = measured_noise(None)
    assert expected["noise"] < 20.0  # several draws were compared
    assert expected["unchanged"]
    for results in ranks:
        torch.testing.assert_close(results["noise"], expected, rtol=1e-9, atol=1e-9)


def test_an_optimizer_made_of_gathered_weights_is_refused(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert "FSDP2 has freed it" in results["gathered"]
        assert "\n" not in results["gathered"]
