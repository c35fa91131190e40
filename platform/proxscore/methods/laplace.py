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
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from proxscore.config import POINT_METHODS, ConfigError, MethodError, MethodSection
from proxscore.inference import Categorical, FullCovariance, Gaussian
from proxscore.inference.layout import Layout
from proxscore.inference.names import named_parameters
from proxscore.methods.method import Setup
from proxscore.posterior import NameOf, Posterior
from proxscore.posterior.posterior import Joint

LARGEST_JACOBIAN = 2**25  # numbers of a row: batches have dozens of rows

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class LaplaceConfig(MethodSection):
    """The Laplace approximation by laplace-torch, after training. One worker."""

    kind: Literal["laplace"] = "laplace"
    of: Annotated[MethodSection, POINT_METHODS] = Field(
        default_factory=POINT_METHODS.make
    )  # how the weights are trained
    subset: Literal["last_layer", "all"] = (
        "last_layer"  # weights that are Gaussian; all others stay as they were trained
    )
    # full: takes the cube of the numbers it describes: minutes beyond 3,000 of them, hours beyond 10,000.
    structure: Literal["full", "diag"] = "full"
    prior_precision: float | None = Field(None, gt=0)  # null: that of the highest marginal likelihood

    extra: ClassVar[str | None] = "peers"
    shards: ClassVar[bool] = False

    def evaluations_beside(self, steps_per_epoch: int) -> int:
        return steps_per_epoch  # the curvature's pass over the training rows

    def last_layer_only(self) -> bool:
        return self.subset == "last_layer"

    def check_likelihood(self, likelihood: Any) -> None:
        if not isinstance(likelihood, (Categorical, Gaussian)):
            raise MethodError(
                f"method.kind=laplace: laplace-torch has a curvature for categorical and Gaussian likelihoods, and none for "
                f"{type(likelihood).__name__}: use another method"
            )
        if isinstance(likelihood, Categorical) and not likelihood.plain:
            raise MethodError(
                "method.kind=laplace: laplace-torch's curvature is that of the plain log-likelihood: leave "
                "task.label_smoothing and task.class_weights out, or use another method"
            )

    def remedy(self, section: str) -> str:
        return self.of.remedy(f"{section}.of")

    def build(self, setup: Setup) -> Any:
        """The optimizer of ``of``, with :class:`Curvature` at its end.

        Raises:
            ConfigError: a structure that the weights do not allow.
        """
        import laplace  # noqa: F401  # an extra: that it is missing is found before training

        layer = ""
        if self.subset == "last_layer":
            layer = [name for name, p in named_parameters(setup.module).items() if p.requires_grad][-1].rpartition(".")[
                0
            ]
            last = setup.module.get_submodule(layer)
            if not isinstance(last, nn.Linear):
                raise ConfigError(
                    f"method.subset=last_layer: the last layer, {layer or 'the network'}, is {type(last).__name__} and not "
                    "Linear; use method.subset=all with method.structure=diag"
                )
            size = sum(p.numel() for p in last.parameters())
        else:
            size = sum(p.numel() for p in setup.module.parameters() if p.requires_grad)
        if self.structure == "full":
            try:
                FullCovariance().check(layer or "all weights", torch.Size(), size)
            except ValueError as error:
                raise ConfigError(f"method.structure=full: {error}") from error
        outputs = [len(p) for p in setup.module.parameters() if p.requires_grad and p.ndim][-1]
        if outputs * size > LARGEST_JACOBIAN:  # for each row of a batch, of its diagonal, too
            raise ConfigError(
                f"method.kind=laplace: laplace-torch writes out each row's Jacobian, {outputs:,} outputs x {size:,} weights, "
                f"{4 * outputs * size / 1e9:,.1f} GB; at most {4 * LARGEST_JACOBIAN / 1e9:.2f} GB: use "
                "method.kind=proximal_score, with a family of the last layer (mean_field, kronecker, low_rank)"
            )
        method = self.of.build(setup)
        curvature = Curvature(self, layer)
        method.conclude, method.posterior_from = curvature.conclude, curvature.posterior_from
        return method


@dataclass
class Curvature:
    """The curvature at the end of training, which makes a Gaussian of a point estimate.

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
        from laplace import Laplace
        from laplace.curvature import CurvlinopsGGN

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
    """The data loader that the package asks for."""

    dataset: range
    batches: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches())
