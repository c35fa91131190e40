"""What the prior says of each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from proxscore.inference import Gaussian, Prior
from proxscore.inference.names import parameter_kinds


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))


def assigned(**settings: Any) -> dict[str, float | None]:
    """Prior precision by parameter name; none for a point estimate."""
    assignments = Prior(**settings).assign(network().named_parameters())
    return {name: a.precision if a.sampled else None for name, a in assignments.items()}


def test_every_parameter_is_informative_by_default() -> None:
    assert assigned(scale=0.5) == {name: pytest.approx(4.0) for name, _ in network().named_parameters()}


def test_biases_and_normalisation_layers_have_their_own_treatment() -> None:
    result = assigned(scale=0.5, biases="flat", norms="point")
    assert result == {
        **{"0.weight": 4.0, "0.bias": 0.0, "4.weight": 4.0, "4.bias": 0.0},
        **{"1.weight": None, "1.bias": None, "3.weight": None, "3.bias": None},  # batch and layer normalisation
    }


def test_a_prior_by_fan_in_has_the_variance_of_an_initialisation_after_he() -> None:
    model = network()
    precisions = assigned(scale="fan_in", scales={"4.bias": 0.5})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            drawn = nn.init.kaiming_normal_(
                torch.empty(1000, *parameter.shape[1:])
            )  # one entry of the first axis, often
            assert precisions[name] ** -0.5 == pytest.approx(drawn.std().item(), rel=0.05)  # 3 standard errors at least
        else:
            assert precisions[name] == (4.0 if name == "4.bias" else 1.0)
    with pytest.raises(ValueError, match=r"prior.scale is 'fanin'; it must be a number, or scale=fan_in"):
        Prior(scale="fanin")  # type: ignore[arg-type]


def test_the_last_matching_scale_counts() -> None:
    result = assigned(scale=1.0, scales={"4.*": 0.5, "*.bias": 0.1})
    assert result["0.weight"] == 1.0
    assert result["4.weight"] == pytest.approx(4.0)
    assert result["4.bias"] == result["0.bias"] == pytest.approx(100.0)


@pytest.mark.parametrize("select", ["last_layer", "4.*", ["4.weight", "4.bias"]])
def test_selected_parameters_are_sampled_and_the_rest_are_point_estimates(select: Any) -> None:
    assert {name for name, precision in assigned(select=select).items() if precision is not None} == {
        "4.weight",
        "4.bias",
    }


def test_layer_scales_count_as_normalisation_and_position_tables_as_weights() -> None:
    shapes = {"block.gamma": torch.ones(4), "pos_embed": torch.ones(1, 5, 4), "head.weight": torch.ones(2, 4)}
    result = Prior(norms="flat").assign(shapes.items())
    assert [result[name].precision > 0 for name in shapes] == [False, True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, r"prior\.scale is 0\.0"),
        ({"scales": {"4.*": -1.0}}, r"prior\.scales\['4\.\*'\] is -1\.0"),
        ({"biases": "none"}, r"prior\.biases is 'none'"),
        ({"norms": 3}, r"prior\.norms is 3"),
        ({"scales": {"5.*": 1.0}}, r"prior\.scales: the pattern '5\.\*' matches no parameter"),
        ({"select": "haed.*"}, r"prior\.select: the pattern 'haed\.\*' matches no parameter"),
    ],
)
def test_bad_prior_settings_are_named_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        assigned(**settings)
    assert "\n" not in str(error.value)


def test_the_last_layer_is_the_networks_and_not_the_likelihoods_noise() -> None:
    model, likelihood = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), Gaussian(1.0, learned=True)
    found = Prior(select="last_layer").assign([*model.named_parameters(), *likelihood.named_parameters()])
    assert [name for name, assignment in found.items() if assignment.sampled] == ["1.weight", "1.bias"]


RECURRENT = nn.ModuleDict(
    {
        "lstm": nn.LSTM(3, 2, bidirectional=True),
        "gru": nn.GRUCell(3, 2),
        "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_bias_kv=True),
        "norm": nn.LayerNorm(4),
        "head": nn.Linear(4, 2),
    }
)


@pytest.mark.parametrize("given", ["names", "module"])
def test_biases_of_recurrent_and_attention_layers_are_biases(given: str) -> None:
    prior = Prior(biases="flat", norms="point", kinds=parameter_kinds(RECURRENT) if given == "module" else {})
    result = prior.assign(RECURRENT.named_parameters())
    flat = {name for name, a in result.items() if a.sampled and a.precision == 0}
    lstm = {f"lstm.bias_{part}_l0{way}" for part in ("ih", "hh") for way in ("", "_reverse")}
    assert flat == lstm | {
        *("gru.bias_ih", "gru.bias_hh", "attention.in_proj_bias", "attention.out_proj.bias", "head.bias")
    }
    assert {name for name, a in result.items() if not a.sampled} == {"norm.weight", "norm.bias"}


def test_with_a_module_normalisation_is_decided_by_the_layer() -> None:
    class ScaleNorm(nn.Module):  # its parameters are called as no other's
        def __init__(self) -> None:
            super().__init__()
            self.g, self.bias = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.zeros(4))

    class Shift(nn.Module):  # a weight that is a vector, and no normalisation
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    module = nn.Sequential(ScaleNorm(), Shift(), nn.InstanceNorm1d(4, affine=True))
    assert parameter_kinds(module) == {
        **{"0.g": "norm", "0.bias": "norm", "1.weight": "norm", "1.bias": "bias", "2.weight": "norm", "2.bias": "norm"}
    }
