"""Draws in one batched pass are the draws one after another, whatever the network; one that cannot be batched says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from proxscore.posterior import Posterior
from proxscore.posterior.drawn import drawn
from proxscore.posterior.stacked import MOST_WORK, StackedDraws
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)


class Gate(nn.Module):
    """Looks at a value, which no batched pass can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if float(y.sum()) > 0 else -y


def vit() -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), (4,)),
    "cnn": (
        lambda: timm.create_model("small_cnn", num_classes=3, in_chans=1, width=2, hidden=4, img_size=8),
        (1, 8, 8),
    ),
    "vit": (vit, (1, 8, 8)),
    "gate": (Gate, (4,)),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rows", [1, 5, 2000])
def test_one_pass_is_as_many(kind: str, rows: int) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[kind]
    module = build()
    mean = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    posterior, x = (
        Posterior(mean, {n: torch.full_like(p, 50.0) for n, p in mean.items()}, buffers),
        torch.randn(rows, *shape),
    )
    refresh = [(torch.randn(9, *shape), torch.zeros(9))]
    with drawn(module, posterior, 4, 2, refresh) as found, torch.no_grad():
        one_by_one = torch.stack(list(found.outputs(x)))
        together = StackedDraws(found)
        assert together.stacked
        torch.testing.assert_close(torch.stack(list(together.outputs(x))), one_by_one, atol=1e-5, rtol=1e-4)
        part = together.first(2)
        assert len(part) == 2
        torch.testing.assert_close(torch.stack(list(part.outputs(x))), one_by_one[:2], atol=1e-5, rtol=1e-4)
        refused = kind == "gate" and rows * sum(p.numel() for p in module.parameters()) <= MOST_WORK
        assert (together.refused is not None) == refused
        assert together.stacked == (not refused)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, mean[name])
