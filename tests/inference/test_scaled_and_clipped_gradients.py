"""Loss scaling and gradient clipping have a place inside the draw loop; outside of it they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from proxscore.inference import Categorical, FullCovariance, LowRank, Prior, ProximalScore
from proxscore.inference.groups import total_norm

SETTINGS: list[dict[str, Any]] = [
    {},
    {"paired": False},
    {"draws": 2},
    {"keep_mean": False},
    {"prior": Prior(select="last_layer")},  # the first layer is a point estimate
    {"families": {"2.*": FullCovariance()}},
    {"families": {"2.*": LowRank(2)}},
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator).double(), torch.randint(3, (12,), generator=generator)


def loss_of(module: nn.Module) -> Tensor:
    x, y = data()
    return Categorical().nll(module(x), y).mean()


def state_of(module: nn.Module, optimizer: ProximalScore) -> list[Tensor]:
    state = optimizer.state_dict()["state"].values()
    return [*module.state_dict().values(), *(v for held in state for v in held.values() if isinstance(v, Tensor))]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(s) or "default")
def test_a_grad_scaler_in_the_loop_changes_nothing(settings: dict[str, Any]) -> None:
    states = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        module = network()
        optimizer = ProximalScore(
            module.named_parameters(),
            100,
            **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
        )
        for _ in range(3):
            for _ in optimizer.draws(scaler):
                loss = loss_of(module)
                (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        states.append(state_of(module, optimizer))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*states, strict=True))


def test_an_overflow_is_skipped_and_lowers_the_scale() -> None:
    module, scaler = network(), torch.amp.GradScaler("cpu", init_scale=2.0**120)
    optimizer = ProximalScore(module.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True)
    before = [p.detach().clone() for p in module.parameters()]
    for _ in optimizer.draws(scaler):
        scaler.scale(loss_of(module) * 1e300).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.param_groups[0]["skipped"] == 1
    assert scaler.get_scale() == 2.0**119
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def test_scaled_losses_without_the_scaler_in_the_loop_are_refused() -> None:
    module, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = ProximalScore(module.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True)
    for _ in optimizer.draws():
        scaler.scale(loss_of(module)).backward()
    with pytest.raises(RuntimeError, match=r"pass it to the loop, optimizer\.draws\(scaler\)"):
        scaler.step(optimizer)


@pytest.mark.parametrize("change", ["clip_norm", "clip_value", "unscale", "zero"])
def test_gradients_that_were_changed_after_the_loop_are_refused(change: str) -> None:
    module, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = ProximalScore(module.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True)
    for _ in optimizer.draws(scaler if change == "unscale" else None):
        loss = loss_of(module)
        (scaler.scale(loss) if change == "unscale" else loss).backward()
    step: Any = optimizer.step
    if change == "clip_norm":
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    elif change == "clip_value":
        nn.utils.clip_grad_value_(module.parameters(), 1.0)
    elif change == "zero":
        module.zero_grad()
    else:
        scaler.unscale_(optimizer)
        step = lambda: scaler.step(optimizer)  # noqa: E731
    with pytest.raises(RuntimeError, match="gradients were changed between the draw loop and step"):
        step()


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(s) or "default")
def test_clipping_equals_that_of_each_draws_loss(settings: dict[str, Any], clip: float) -> None:
    """A loss whose gradient at the draw is the clipped one: the loss times the factor of torch's own clip_grad_norm_."""
    states = []
    for inside in (True, False):
        module = network()
        optimizer = ProximalScore(
            module.named_parameters(),
            100,
            clip_norm=clip if inside else None,
            **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
        )
        for _ in range(3):
            for _ in optimizer.draws():
                loss = loss_of(module)
                if not inside:
                    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
                    norm = torch.nn.utils.get_total_norm(gradients)
                    loss = loss * (clip / norm).clamp(max=1.0)
                loss.backward()
            optimizer.step()
        states.append(state_of(module, optimizer))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*states, strict=True))


def _clipped_on_shards(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    module = network()
    for layer in (module[0], module):
        fully_shard(layer, mesh=mesh)
    norms = [total_norm(p for p in module.parameters())]
    optimizer = ProximalScore(
        module.named_parameters(), 100, clip_norm=0.05, metric="posterior", initial_precision=0.1, paired=True
    )
    for _ in range(3):
        for _ in optimizer.draws():
            loss_of(module).backward()
        optimizer.step()
    weights = {name: p.full_tensor() for name, p in module.named_parameters()}
    if rank == 0:
        torch.save([weights, norms], f"{folder}/weights.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_clipping_on_shards_is_that_of_the_whole(tmp_path: Path) -> None:
    mp.start_processes(_clipped_on_shards, (str(tmp_path),), nprocs=2, start_method="forkserver")
    sharded, norms = torch.load(tmp_path / "weights.pt", weights_only=True)
    module = network()
    whole = torch.nn.utils.get_total_norm(list(module.parameters()))
    assert norms[0].item() == pytest.approx(whole.item(), rel=1e-12)
    optimizer = ProximalScore(
        module.named_parameters(), 100, clip_norm=0.05, metric="posterior", initial_precision=0.1, paired=True
    )
    for _ in range(3):
        for _ in optimizer.draws():
            loss_of(module).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_sparse_gradients_of_embeddings_count_as_the_dense_ones() -> None:
    states = []
    for sparse in (True, False):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        optimizer = ProximalScore(
            module.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True
        )
        tokens, labels = torch.randint(6, (12, 2)), torch.randint(3, (12,))
        for _ in range(2):
            for _ in optimizer.draws():
                Categorical().nll(module(tokens), labels).mean().backward()
            optimizer.step()
        states.append(state_of(module, optimizer))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*states, strict=True))
