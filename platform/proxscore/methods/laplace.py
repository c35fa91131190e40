"""The Laplace approximation of a trained network, by the package ``laplace-torch``.

    q = N(theta*, (H + prior precision)^-1),    H = the generalised Gauss-Newton matrix of the training rows at theta*

Training is that of another method (``of``); the curvature comes after it. Daxberger et al., Laplace redux, arXiv 2106.14806.
Over the last layer the network is linear in the weights, so that draws of weights are draws of the linearised predictive
which the package recommends; over all weights (a diagonal) draws of weights tend to underfit. The package knows whole
modules only: one worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from laplace import Laplace
from laplace.curvature import CurvlinopsGGN
from torch import Tensor, nn

from proxscore.config import ConfigError, LaplaceConfig
from proxscore.inference import FullCovariance, Gaussian
from proxscore.inference.layout import Layout
from proxscore.inference.names import named_parameters
from proxscore.posterior import NameOf, Posterior
from proxscore.posterior.posterior import Joint

if TYPE_CHECKING:
    from proxscore.methods import Horizon

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass
class Curvature:
    """What training's end adds to a point estimate.

    Attributes:
        config: of the method.
        layer: name of the last layer; empty: all layers.
        precision: of the posterior: (D, D), or (D,) where it is diagonal; none before the end.
        prior_precision: as given, or of the highest marginal likelihood.
    """

    config: LaplaceConfig
    layer: str
    precision: Tensor | None = None
    prior_precision: float = 0.0
    parameters: list[nn.Parameter] = field(default_factory=list)

    def conclude(self, module: nn.Module, likelihood: nn.Module, batches: Batches, rows: int) -> None:
        """Compute the curvature from so many training rows."""
        settings: dict[str, Any] = {"last_layer_name": self.layer} if self.layer else {}
        if isinstance(likelihood, Gaussian):
            settings["sigma_noise"] = float(likelihood.log_noise.exp())
        fitted: Any = Laplace(
            module,
            "regression" if isinstance(likelihood, Gaussian) else "classification",
            subset_of_weights=self.config.subset,
            hessian_structure=self.config.structure,
            backend=CurvlinopsGGN,
            prior_precision=self.config.prior_precision or 1.0,
            **settings,
        )
        fitted.fit(_Loader(range(rows), batches))
        if self.config.prior_precision is None:
            fitted.optimize_prior_precision(method="marglik", prior_structure="scalar")
        self.precision = fitted.posterior_precision.detach()
        self.prior_precision = float(fitted.prior_precision)
        prefix = f"{self.layer}." if self.layer else ""
        trained = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
        self.parameters = [p for name, p in trained.items() if name.startswith(prefix)]
        module.zero_grad()

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """The Gaussian; before training's end, the weights as they are."""
        if self.precision is None:
            return point
        description = point.description | {"prior_precision": self.prior_precision}
        names = [name_of(p) for p in self.parameters]
        means = [point.mean[name] for name in names]
        if self.precision.ndim == 1:
            pieces = self.precision.split([mean.numel() for mean in means])
            precision = {n: piece.view_as(m) for n, piece, m in zip(names, pieces, means, strict=True)}
            return replace(point, precision=precision, description=description)
        # Sigma = (L L^T)^-1 = C C^T with C = L^-T
        lower = torch.linalg.cholesky(self.precision.double())
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        factor = torch.linalg.solve_triangular(lower.mT, identity, upper=True).to(means[0])
        state = {"mean": torch.cat([mean.flatten() for mean in means]), "factor": factor}
        members = [(name, mean, 0) for name, mean in zip(names, means, strict=True)]
        return replace(point, joint=[Joint(Layout(FullCovariance(), members), state)], description=description)


@dataclass
class _Loader:
    """What the package asks of a data loader."""

    dataset: range
    batches: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches())


def build(
    config: LaplaceConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: Any = None,
    draw_mesh: Any = None,
) -> Any:
    """The optimizer of ``of``, with :class:`Curvature` at its end.

    Raises:
        ConfigError: a structure that the weights do not allow.
    """
    from proxscore.methods import build_method

    layer = ""
    if config.subset == "last_layer":
        layer = [name for name, p in named_parameters(module).items() if p.requires_grad][-1].rpartition(".")[0]
        last = module.get_submodule(layer)
        if not isinstance(last, nn.Linear):
            raise ConfigError(
                f"method.subset=last_layer: the last layer, {layer or 'the network'}, is {type(last).__name__} and not Linear; "
                "use method.subset=all with method.structure=diag"
            )
        size = sum(p.numel() for p in last.parameters())
    else:
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if config.structure == "full":
        try:
            FullCovariance().check(layer or "all weights", torch.Size(), size)
        except ValueError as error:
            raise ConfigError(f"method.structure=full: {error}") from error
    method: Any = build_method(config.of, module, horizon, seed, losses, draw_mesh)
    curvature = Curvature(config, layer)
    method.conclude, method.posterior_from = curvature.conclude, curvature.posterior_from
    return method
