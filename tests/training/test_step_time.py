"""The time of a step from its parts: what computing hides of the communication, NCCL's rings, and the update's bytes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore import config as configuration
from proxscore.inference import kernels
from proxscore.inference.elementwise import Settings
from proxscore.methods.proximal_score import ProximalScoreConfig
from proxscore.training.preflight.dry_run import dry_run
from proxscore.training.preflight.estimate import Work, waited_checkpoints
from proxscore.training.preflight.hardware import DEVICES, NCCL, simple
from proxscore.training.preflight.passes import moved_by, moved_in_a_step
from proxscore.training.preflight.step_time import step_time, waited_backward, waited_forward
from proxscore.training.preflight.traffic import traffic_of

H100 = DEVICES["H100"]


def network(depth: int = 4) -> nn.Module:
    with torch.device("meta"):
        layers = [nn.Sequential(nn.Linear(8, 8)) for _ in range(depth)]
        return nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 128) for _ in layers), nn.Linear(64, 10))


def test_what_is_waited_for_is_worked_out_by_hand() -> None:
    """Root and three blocks; gathers of 1, 2, 3, 4 s. Forward: root, block 1, then 3 and 4 less what the block before computes.

    Backward: block 3's 4 s behind the root's 1 s; block 2's 3 s behind block 3's 2.5; 2 s and the gradients' 0.5 s behind
    block 2's 1 s; these of block 2 behind block 1's 5 s; those of block 1 and of the root are left.
    """
    gathers, computing = [1.0, 2.0, 3.0, 4.0], [1.0, 5.0, 1.0, 2.5]
    assert waited_forward(gathers, computing, root=True) == pytest.approx(1 + 2 + 0 + 3)
    expected = (4 - 1) + (3 - 2.5) + (2 + 0.5 - 1) + 0 + 0.5 + 0.5
    assert waited_backward(gathers, [0.5] * 4, computing, root=True) == pytest.approx(expected)


@pytest.mark.parametrize("arranged", [(1, 1, 4), (1, 4, 1), (1, 2, 4), (2, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("seconds", [1e-9, 1e-4, 1e3])
def test_waiting_lies_between_what_cannot_be_hidden_and_all_that_is_sent(
    arranged: tuple[int, int, int], seconds: float
) -> None:
    traffic = traffic_of(network(), arranged, evaluations=2, micro_batches=3)
    shares = {part.name: 1 / len(traffic.parts) for part in traffic.parts}
    step = step_time(traffic, H100.fabric, seconds, 0.0, shares)
    assert max(0.0, step.sent - step.computing) <= step.waited + 1e-12
    assert 0 < step.waited <= step.sent
    apart = step_time(traffic, H100.fabric, seconds, 0.0, shares, overlap=False)
    assert apart.waited == apart.sent == step.sent


def test_without_overlap_a_step_takes_its_bytes_over_the_bandwidth_and_its_messages() -> None:
    for arranged in ((1, 1, 4), (1, 2, 4), (2, 2, 2)):
        traffic = traffic_of(network(), arranged, evaluations=2)
        sent = step_time(traffic, simple(8, 100), 1.0, 0.0, {}, overlap=False).sent
        assert sent == pytest.approx(traffic.received / 1e9 + traffic.messages * 1e-4)


def test_a_ring_within_a_machine_is_as_fast_as_its_links_and_across_machines_as_all_their_network_together() -> None:
    """A large message: 7/8 of it over a GPU's NVLink; of 16 machines 15/16 over the eight GPUs' network. A small one: hops."""
    fabric, size = H100.fabric, 1e12
    assert fabric.gather(size, 8) == pytest.approx(7 / 8 * size / fabric.inside, rel=1e-3)
    assert fabric.gather(size, 128) == pytest.approx(15 / 16 * size / (8 * fabric.across), rel=1e-3)
    assert fabric.gather(size, 16, apart=8) == pytest.approx(15 / 16 * size / fabric.across, rel=1e-3)
    assert fabric.reduce(size, 8) == pytest.approx(2 * fabric.gather(size, 8), rel=1e-3)
    low_latency = NCCL[0]
    hops = 112 * low_latency.inside + 15 * low_latency.across
    assert fabric.gather(1.0, 128) == pytest.approx(low_latency.start + hops, rel=1e-3)
    assert fabric.gather(size, 1) == fabric.reduce(size, 1) == 0.0


def of(**settings: Any) -> float:
    return moved_in_a_step(ProximalScoreConfig(**settings)).fused


def test_the_bytes_of_an_update_are_those_of_the_tensors_that_its_passes_name() -> None:
    """In float32 numbers. A draw reads weights and precision, writes weights and mean, and its noise goes to memory and back.

    A step from a single draw reads it and its gradient, mean, precision, running mean and square, and writes all but the
    gradient. Else it reads total and statistic in their place, and writes the statistic, too.
    """
    draw, once, step = 4 + 2, 6 + 5, 6 + 6
    assert of() == 4 * (draw + once)
    assert of(metric="posterior") == 4 * (draw + once - 2)
    reflect, first, second, home = 3, 1 + 2, 5 + 2, 2
    assert of(paired=True) == 4 * (draw + reflect + first + second + home + step)
    again, single, added = draw - 1, 4 + 2, 3  # the mean is remembered once; weights come home once
    summed = single + 1  # the second one's total is read, too
    assert of(draws=2) == 4 * (draw + again + single + summed + 2 * added + 1 + home + step)
    assert moved_in_a_step(ProximalScoreConfig(draws=2), groups=2).fused == of(draws=2) - 4 * (again + summed + added)
    assert moved_in_a_step(configuration.parse({"method": {"kind": "adamw"}}).method).fused == 28


def test_operation_by_operation_every_argument_is_read_and_every_result_written() -> None:
    """mean + noise / sqrt(precision): a root of 2 numbers, a product of 3, a sum of 3, and a copy of 2."""
    tensors = [torch.empty(64, device="meta") for _ in range(4)]
    assert moved_by(kernels.sample_, *tensors).apart == 4 * (2 + 3 + 3 + 2)
    assert moved_in_a_step(ProximalScoreConfig()).apart > 4 * of()


@pytest.mark.slow
def test_the_compiler_moves_what_is_counted() -> None:
    """By Inductor's own count of the kernels, which has a tensor more for each second copy of the same result."""
    from torch._inductor import compile_fx, metrics
    from torch._inductor import config as inductor

    compile_fx.inductor_metrics_log.setLevel(logging.INFO)
    count, one = 1 << 14, torch.ones(())

    def counted(function: Callable[..., None], *arguments: Any, **flags: Any) -> float:
        metrics.reset()
        with inductor.patch(force_disable_caches=True):
            torch.compile(function, fullgraph=True)(*arguments, **flags)
        return metrics.num_bytes_accessed / count

    def tensors(number: int) -> list[Tensor]:
        return [torch.ones(count) for _ in range(number)]

    flags = dict(fresh=True, paired=False, last=True, home=True)
    columns = tensors(5)
    taken = moved_by(kernels.take_, *columns, one, one, one, **flags).fused
    assert taken <= counted(kernels.take_, *columns, one, one, one, **flags) <= taken + 4.01
    penalty, numbers = ProximalScoreConfig().penalty.build(100, 10), Settings(*torch.ones(14).unbind())
    state = (*tensors(7), None, penalty, True, numbers)
    moved = moved_by(kernels.step_, *state).fused
    assert moved <= counted(kernels.step_, *state) <= moved + 4.01


TREE: dict[str, Any] = {
    "task": {"model": {"name": "small_cnn"}, "data": {"kind": "digits", "limit": 200}},
    "training": {"device": "cpu", "batch_size": 64, "workers": 16, "epochs": 4},
}


def test_checkpoints_are_waited_for_where_nothing_sends_them_meanwhile_or_they_take_longer_than_the_steps_between() -> (
    None
):
    work = Work(100, 100, 0, 0, checkpoints=4)
    assert waited_checkpoints(work, 10.0, 1000.0, behind=False) == pytest.approx(40)
    assert waited_checkpoints(work, 10.0, 1000.0, behind=True) == pytest.approx(10)
    assert waited_checkpoints(work, 10.0, 20.0, behind=True) == pytest.approx(3 * 5 + 10)


def test_a_dry_run_describes_a_job_on_devices_that_are_not_here() -> None:
    text = {}
    for device, utilisation in itertools.product(("A100", "H200"), (0.2, 0.4)):
        cost = {"device": device, "utilisation": utilisation, "hourly": {"gpu": 3.0}}
        text[device, utilisation] = dry_run(configuration.parse(TREE | {"cost": cost}))
    for (device, utilisation), said in text.items():
        peak = {"A100": 312, "H200": 989}[device]
        assert f"of cost.device={device} at {utilisation * peak:g} TFLOP/s" in said
        assert "within machines of 8" in said
        assert "are not hidden behind computing" in said
        assert "USD at 3 an hour of one GPU" in said
        assert "MORE THAN" not in said
    training = TREE["training"] | {"workers": 1, "batch_size": 1_000_000}
    wide = TREE["task"] | {"model": {"name": "small_cnn", "kwargs": {"width": 256}}}
    said = dry_run(configuration.parse({"task": wide, "training": training, "cost": {"device": "A100"}}))
    assert "MORE THAN an A100 has, 74.51 GiB" in said
