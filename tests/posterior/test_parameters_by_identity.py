"""A posterior finds the optimizer's parameters in the module by identity: parts of modules, wrapped modules, all methods."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from proxscore.config import ConfigError
from proxscore.inference import Categorical, FullCovariance, LowRank, ProximalScore
from proxscore.inference.names import canonical_names, named_buffers, named_layers, named_parameters
from proxscore.methods import RunLength, Setup, build_method
from proxscore.methods.elbo import ELBOConfig
from proxscore.methods.ivon import IVONConfig
from proxscore.methods.sgmcmc import SGLDConfig
from proxscore.methods.swag import SWAGConfig
from proxscore.posterior import Posterior, predict

N = 60


def network() -> nn.Sequential:
    """The first layer's parameters are shaped as those of the third, whose names within it are the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 3)))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 3, generator=generator), torch.randint(3, (N,), generator=generator)


def trained(optimizer: Any, module: nn.Module, steps: int = 3) -> Any:
    x, y = data()
    for _ in range(steps):
        for _ in optimizer.draws():
            Categorical().nll(module(x), y).mean().backward()
        optimizer.step()
    return optimizer


def mutual_information(posterior: Posterior, module: nn.Module) -> float:
    x, _ = data()
    logits = []
    for index in range(64):  # by the definition, draw by draw
        weights = {name: value for name, value in posterior.draw(index).items()}
        logits.append(torch.func.functional_call(module, weights, (x,)))
    p = torch.stack(logits).softmax(2).detach()
    entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    return (entropy(p.mean(0)) - entropy(p).mean(0)).mean().item()


@pytest.mark.parametrize("family", [None, FullCovariance(), LowRank(2)])
def test_the_optimizer_of_a_part_describes_that_part(family: Any, tmp_path: Path) -> None:
    module = network()
    optimizer = trained(
        ProximalScore(
            module[2].named_parameters(), N, family=family, initial_precision=0.1, metric="posterior", paired=True
        ),
        module,
    )
    posterior = Posterior.of(module, optimizer)
    described = {*posterior.precision, *(name for joint in posterior.joint for name in joint.names)}
    assert described == {"2.0.weight", "2.0.bias"}
    draw = posterior.draw(0)
    assert torch.equal(draw["0.weight"], module[0].weight)
    assert not torch.equal(draw["2.0.weight"], module[2][0].weight)
    x, y = data()
    predictive = predict(module, lambda: [(x, y)], posterior, draws=64)
    found = (-(predictive.mean * predictive.log_probabilities).sum(1) - predictive.expected_entropy).mean().item()
    assert found == pytest.approx(mutual_information(posterior, module), rel=1e-3)
    assert found > 1e-3
    again = Posterior.load(posterior.save(tmp_path)).draw(0)
    assert all(torch.equal(again[name], draw[name]) for name in draw)


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "compile", "compiled_ddp", "averaged", "activation_checkpointing"])
def test_a_wrapped_module_has_the_posterior_of_the_plain_one(wrap: str, process_group: Any) -> None:
    plain = network()
    expected = Posterior.of(
        plain,
        trained(
            ProximalScore(plain.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), plain
        ),
    )

    inner = network()
    wrapped: Any = {
        "ddp": DistributedDataParallel,
        "compile": lambda m: torch.compile(m, backend="eager"),
        "compiled_ddp": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
        "averaged": lambda m: AveragedModel(m),
        "activation_checkpointing": lambda m: nn.Sequential(m[0], m[1], checkpoint_wrapper(m[2])),
    }[wrap](inner)
    optimizer = trained(
        ProximalScore(wrapped.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), wrapped
    )
    for module in {id(m): m for m in (wrapped, inner) if wrap != "averaged"}.values() or [wrapped]:
        posterior = Posterior.of(module, optimizer)
        assert set(posterior.precision) == set(expected.precision)
        for name, value in posterior.draw(3).items():
            torch.testing.assert_close(value, expected.draw(3)[name])


def test_a_module_that_somebody_called_module_is_no_wrapper() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))

    assert set(named_parameters(Net())) == {"module.weight", "module.bias", "weight"}
    assert canonical_names(["module.weight", "weight"]) == ["module.weight", "weight"]
    assert canonical_names(["module._orig_mod.0.weight", "module._orig_mod.0.bias"]) == ["0.weight", "0.bias"]
    assert set(named_layers(nn.Sequential(nn.ReLU()))) == {"", "0"}
    assert set(named_buffers(nn.BatchNorm1d(2))) == {"running_mean", "running_var", "num_batches_tracked"}


def test_an_optimizer_of_another_module_is_refused() -> None:
    module, other = network(), network()
    optimizer = trained(
        ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
    )
    with pytest.raises(ConfigError, match=r"samples a parameter of shape \(3, 3\) that is none of the module's"):
        Posterior.of(other, optimizer)
    with pytest.raises(ConfigError, match="none of the module's"):
        Posterior.of(copy.deepcopy(module), optimizer)


@pytest.mark.parametrize(
    "section", [ELBOConfig(), IVONConfig(), SGLDConfig(samples=2, cycles=1), SWAGConfig(rank=2, start=0.2)]
)
def test_every_method_that_knows_a_part_describes_that_part(section: Any) -> None:
    """The part's names are ``0.weight`` and ``0.bias``, which are also those of the whole's first layer."""
    module = network()
    method = build_method(section, Setup(module[2], RunLength(20, 5, N)))
    trained(method, module, steps=20)
    posterior = Posterior.of(module, method)  # type: ignore[arg-type]
    draws = [posterior.draw(index) for index in posterior.indices(2)]
    moved = {name for name in draws[0] if not torch.equal(draws[0][name], draws[1][name])}
    assert moved == {"2.0.weight", "2.0.bias"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.precision.update({"2.0.weight": torch.ones(9)}), r"precision\.2\.0\.weight is \(9,\); its mean is \(3, 3\)"),
        (lambda p: p.precision.update({"2.0.weight": torch.ones(3, 3).int()}), r"precision\.2\.0\.weight is int32"),
        (lambda p: p.precision.update({"2.0.weight": -torch.ones(3, 3)}), r"precision\.2\.0\.weight is not positive"),
        (lambda p: p.precision.update({"2.0.weight": torch.zeros(3, 3)}), r"precision\.2\.0\.weight is not positive"),
        (lambda p: p.precision["2.0.weight"].fill_(torch.nan), r"precision\.2\.0\.weight is not finite"),
        (lambda p: p.precision["2.0.weight"].fill_(torch.inf), r"precision\.2\.0\.weight is not finite"),
        (lambda p: p.precision.update({"9.weight": torch.ones(3)}), r"precision\.9\.weight belongs to no parameter"),
        (lambda p: p.mean["2.0.weight"].fill_(torch.nan), r"mean\.2\.0\.weight is not finite"),
        (lambda p: p.mean["2.0.bias"].fill_(torch.inf), r"mean\.2\.0\.bias is not finite"),
    ],
)  # fmt: skip
def test_numbers_that_no_posterior_has_are_refused_by_name(spoil: Any, message: str, tmp_path: Path) -> None:
    module = network()
    posterior = Posterior.of(
        module,
        trained(
            ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
        ),
    ).gather()
    spoil(posterior)
    posterior.save(tmp_path)
    with pytest.raises(ConfigError, match=f"posterior.safetensors: {message}"):
        Posterior.load(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_block_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        N,
        families={"2.*": FullCovariance()},
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    posterior = Posterior.of(module, trained(optimizer, module)).gather()
    posterior.joint[0].state["factor"][0, 0] = value
    posterior.save(tmp_path)
    with pytest.raises(ConfigError, match=r"joint\.0\.factor is not finite"):
        Posterior.load(tmp_path)


class Counting(nn.Linear):
    """Has extra state, as quantised layers have."""

    def __init__(self, *sizes: int, state: Any = None) -> None:
        super().__init__(*sizes)
        self.seen: Any = {"calls": 3, "names": ["a"]} if state is None else state

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


def test_extra_state_is_saved_with_a_posterior(tmp_path: Path) -> None:
    module = nn.Sequential(Counting(3, 3), Counting(3, 3, state=torch.arange(4.0)))
    posterior = Posterior.of(
        module,
        trained(
            ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
        ),
    )
    other = nn.Sequential(Counting(3, 3, state=0), Counting(3, 3, state=torch.zeros(4)))
    Posterior.load(posterior.save(tmp_path)).load_into(other)
    assert other[0].seen == {"calls": 3, "names": ["a"]}
    assert torch.equal(other[1].seen, torch.arange(4.0))
    with pytest.raises(ConfigError, match="extra state of layer 0 is on one side only"):
        Posterior.load(tmp_path).load_into(nn.Sequential(nn.Linear(3, 3), Counting(3, 3)))


def test_extra_state_that_is_code_is_refused_by_name(tmp_path: Path) -> None:
    module = nn.Sequential(Counting(3, 3, state=object()))
    with pytest.raises(ConfigError, match="layer 0 has extra state of type object, which cannot be saved"):
        Posterior.of(module).save(tmp_path)


def test_a_block_that_is_used_twice_and_buffers_that_share_memory_are_saved(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(3)
    module = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 3), norm)
    table = torch.arange(6.0)
    module[0].register_buffer("left", table[:3])
    module[2].register_buffer("right", table[3:])
    module(data()[0])
    posterior = Posterior.of(
        module,
        trained(
            ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
        ),
    )
    other = nn.Sequential(nn.Linear(3, 3), twice := nn.BatchNorm1d(3), nn.Linear(3, 3), twice)
    other[0].register_buffer("left", torch.zeros(3))
    other[2].register_buffer("right", torch.zeros(3))
    Posterior.load(posterior.save(tmp_path)).load_into(other)
    assert torch.equal(other[1].running_mean, norm.running_mean)
    assert torch.equal(other[2].right, table[3:])
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))


# ------------------------------------------------------------------ tampering, and draws in the place of means


def tampered(tmp_path: Path, change: Any) -> Path:
    """A stored posterior with BatchNorm whose tensors or header were changed."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    Posterior.of(
        module,
        trained(
            ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
        ),
    ).save(tmp_path)
    tensors, header = (
        load_file(tmp_path / "posterior.safetensors"),
        json.loads((tmp_path / "posterior.json").read_text()),
    )
    change(tensors, header)
    save_file(tensors, tmp_path / "posterior.safetensors")
    (tmp_path / "posterior.json").write_text(json.dumps(header))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t["buffer.1.running_mean"].fill_(torch.nan), r"buffer\.1\.running_mean is not finite"),
        (lambda t, h: t["buffer.1.running_mean"].fill_(torch.inf), r"buffer\.1\.running_mean is not finite"),
        (lambda t, h: t["buffer.1.running_var"].fill_(-1.0), r"buffer\.1\.running_var holds NaN or a negative variance"),
        (lambda t, h: t.update({"buffer.1.running_var": torch.ones(4).int()}), r"buffer\.1\.running_var is int32"),
        (lambda t, h: t.pop("precision.0.weight"), r"14 tensors, and posterior\.json counts 15"),
        (lambda t, h: t.update({"mean.0.bias": torch.ones(4).to(torch.float8_e4m3fn)}), r"mean\.0\.bias is float8_e4m3fn"),
        (lambda t, h: h.update(kind="swag"), r"0 deviation\(s\)"),
    ],
)  # fmt: skip
def test_tampering_is_named(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Posterior.load(tampered(tmp_path, change))


@pytest.mark.parametrize("family", [{"kind": "low_rank", "rank": 10**9}, {"kind": "mixture", "components": 10**10}])
def test_a_block_of_impossible_size_is_refused_before_it_is_made(family: dict[str, Any], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        del tensors["precision.0.weight"]
        header["tensors"] -= 1
        header["joint"] = [family | {"parameters": ["0.weight"]}]

    with pytest.raises(
        ConfigError, match=r"block 0: ValueError: (rank|components) is 10+, and the block has 0 numbers"
    ):
        Posterior.load(tampered(tmp_path, change))


def test_a_posterior_is_not_taken_or_drawn_where_a_draw_is_in_the_weights() -> None:
    module = network()
    optimizer = trained(
        ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True), module
    )
    for _ in optimizer.draws():
        with pytest.raises(ConfigError, match="a posterior is taken after the draw loop"):
            Posterior.of(module, optimizer)
        module(data()[0]).sum().backward()
    optimizer.step()
    posterior = Posterior.of(module, optimizer)
    with posterior.use(module, 0):
        with pytest.raises(ConfigError, match="the means of this posterior are the weights of a module"):
            posterior.draw(1)
        with pytest.raises(ConfigError, match="the means of this posterior"), posterior.use(module, 1):
            pass
    apart = posterior.gather()
    expected = apart.draw(1)["0.weight"]
    with apart.use(module, 0):
        assert torch.equal(apart.draw(1)["0.weight"], expected)
    assert torch.equal(posterior.draw(1)["0.weight"], expected)
