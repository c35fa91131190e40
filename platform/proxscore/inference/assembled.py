"""A torch optimizer whose parameters are assigned to parts: what it is before its first draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from proxscore.inference import noise
from proxscore.inference.convergence import Probed
from proxscore.inference.families import Family, MeanField
from proxscore.inference.gradients import Gradients
from proxscore.inference.groups import DrawGroups, all_agree
from proxscore.inference.initial import INITIAL_NOISE
from proxscore.inference.kernels import WORTH, why_not
from proxscore.inference.members import assign_members, named_groups
from proxscore.inference.metric import LR, Metric
from proxscore.inference.names import canonical_names
from proxscore.inference.parts.assembly import Assembly
from proxscore.inference.parts.block import Block
from proxscore.inference.parts.part import Part
from proxscore.inference.parts.points import Points
from proxscore.inference.parts.shards import Shards
from proxscore.inference.parts.solved_block import SolvedBlock
from proxscore.inference.penalties import ForwardKL, Penalty
from proxscore.inference.priors import Prior
from proxscore.inference.schedules import Schedule
from proxscore.inference.settings import check_group, check_metric, check_start, require_positive
from proxscore.inference.solver import GradientSolver


class AssembledOptimizer(torch.optim.Optimizer):
    """The settings of :class:`proxscore.inference.ProximalScore`, its parameters and their parts, without draws and steps."""

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        data_size: float,
        *,
        prior: Prior | None = None,
        prior_schedule: Schedule | None = None,
        penalty: Penalty | None = None,
        family: Family | None = None,
        families: Mapping[str, Family] | None = None,
        solver: GradientSolver | None = None,
        metric: Metric = "adaptive",
        lr: float | None = None,
        square_decay: float | None = None,
        initial_noise: float | None = None,
        initial_precision: float | Mapping[str, float] | None = None,
        paired: bool = False,
        draws: int = 1,
        draw_mesh: DeviceMesh | None = None,
        keep_mean: bool = True,
        momentum: float = 0.9,
        max_log_precision_step: float | None = 1.0,
        max_mean_step: float | None = None,
        temperature: float = 1.0,
        point_lr: float | None = None,
        clip_norm: float | None = None,
        max_skipped_steps: int = 10,
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        """Check the settings, and assign the parameters to parts.

        Args:
            params: ``model.named_parameters()``, or groups (dicts) of named parameters; a group may set its own ``lr``,
                ``momentum`` and ``initial_precision``. Frozen parameters are left alone; a tied one counts once.
            data_size: number of data points N behind the posterior. A larger number than the true one is a colder posterior.
            prior: Gaussian prior and selection of the sampled parameters.
            prior_schedule: factor on the prior's precision over the steps, in [0, 1]: a prior that enters gradually leaves the
                likelihood the first word, where the adaptive metric amplifies the prior's pull wherever gradients are small.
                Only where it ends at one is the posterior that of the whole prior.
            penalty: proximal penalty with its weights and their schedules (in steps).
            family: variational family of the sampled parameters (default: mean-field).
            families: glob pattern of parameter names -> family, for parts of the network, each described jointly; the last
                match counts.
            solver: none takes the closed-form step for families that have one, and a :class:`GradientSolver` with its
                defaults for the others; given, it serves them all.
            metric: metric of the mean's proximal step (:mod:`proxscore.inference.metric`): ``adaptive``, Adam's, or
                ``posterior``, with the weight ``penalty.mean``.
            lr: with the adaptive metric the learning rate, in Adam's units (default 0.004); with the posterior's a factor on the
                mean's step (default 1). Torch's learning-rate schedulers may change it.
            square_decay: decay of the adaptive metric's running mean of squared gradients, in [0, 1)
                (default 0.999).
            initial_noise: the initial standard deviations relative to each tensor's weights (:mod:`proxscore.inference.initial`;
                0.02 where nothing is given); none is wider than the prior.
            initial_precision: in its place, the initial precision of every sampled parameter divided by data_size / temperature,
                to which the prior's is added; or by parameter name.
            paired: score each draw m + e together with m - e on the same batch (two evaluations): for precisions that have to be
                right, as the gradient that both have in common leaves their curvature statistic.
            draws: draws, or pairs, per step, over all draw groups.
            draw_mesh: one-dimensional mesh over draw groups: processes that hold the same parameters (or the same shards of
                them) and score different draws of a step on the same batch, each ``draws`` / its size. Their scores and
                curvatures are summed before the step, which is that of one process with all the draws.
            keep_mean: false spares the mean-field state a copy of the mean, for more time for the noise.
            momentum: decay of the running mean of the score (bias-corrected), in [0, 1).
            max_log_precision_step: trust region: largest change of a log-precision in a step (of a full covariance: norm of
                the change of the matrix's logarithm, less beyond 32 numbers); none: unlimited.
            max_mean_step: trust region: largest change of a number of the mean in a step, with the adaptive metric in units of lr
                (default 3: Adam's steps rarely reach it), with the posterior's in posterior standard deviations (default 0.1);
                times lr and the mean's schedule. The gradient solver reads no trust region: its learning rate limits the step.
            temperature: the likelihood is raised to the power 1 / temperature.
            point_lr: Adam's learning rate for parameters that are not sampled (times the mean's schedule); default lr, or 0.001
                with the posterior's metric.
            clip_norm: largest 2-norm of a draw's gradient of the mean negative log-likelihood, over all parameters (and shards)
                together; a longer one is scaled down, draw by draw, which biases the scores towards smaller ones. Costs another
                P numbers within a step. ``clip_grad_norm_`` would scale the curvature statistics instead: within the loop, where
                the second draw of a pair adds its gradient to that of the first, and after it, where ``step`` refuses it.
            max_skipped_steps: a step whose scores are not finite is skipped (mean, precision and running means stay); that many
                in a row raise FloatingPointError.
            seed: seed of the draws' noise.
            fused: whether the passes over large mean-field parameters are compiled by ``torch.compile``, which takes seconds at
                the first step on a machine, and a fraction of the time in every later one; none: where they hold a million
                numbers and a compiler is at hand. Equal to the other path but for rounding; a state of ``state_dict`` goes on
                in the path that it was saved in.

        Raises:
            ValueError: a setting outside its range, unnamed parameters, a parameter of lower precision than float32, or a
                sharding that cannot be sampled; the message names it.
        """
        require_positive(
            data_size=data_size,
            temperature=temperature,
            draws=draws,
            max_skipped_steps=max_skipped_steps,
            max_log_precision_step=max_log_precision_step,
            max_mean_step=max_mean_step,
            point_lr=point_lr,
            clip_norm=clip_norm,
            initial_noise=initial_noise,
        )
        self.penalty = penalty or ForwardKL()
        check_metric(metric, square_decay, self.penalty)
        check_start(initial_noise, initial_precision)
        adaptive = metric == "adaptive"
        lr = lr if lr is not None else LR if adaptive else 1.0
        self.base_lr = lr if adaptive else 1.0
        self.metric, self.square_decay = metric, 0.999 if square_decay is None else square_decay
        self.data_size, self.temperature, self.scale = data_size, temperature, data_size / temperature
        self.prior_schedule, self.paired, self.draws_per_step = prior_schedule, paired, draws
        self.max_log_precision_step, self.max_skipped_steps = max_log_precision_step, max_skipped_steps
        self.max_mean_step = max_mean_step if max_mean_step is not None else 3.0 if adaptive else 0.1
        self._draw_groups = DrawGroups(draw_mesh, draws)
        self.statistics: dict[str, float] = {}

        by_name = dict(initial_precision) if isinstance(initial_precision, Mapping) else {}
        general = 0.1 if isinstance(initial_precision, Mapping) else initial_precision
        defaults = dict(lr=lr, momentum=momentum, initial_precision=None if initial_noise is not None else general)
        counters = dict(step=0, momentum_product=1.0, skipped=0, skipped_in_a_row=0, seed=seed)
        super().__init__(named_groups(params), defaults | counters)
        for group in self.param_groups:
            check_group(group)
        named = self.named_parameters()
        self._gradients = Gradients([parameter for _, parameter in named], clip_norm)
        self.prior = (prior or Prior()).about_start(named)
        self._members = assign_members(
            named, self.param_groups, self.prior, by_name, initial_noise or INITIAL_NOISE, self.scale
        )
        assembly = Assembly(
            family=family or MeanField(),
            families=dict(families or {}),
            solver=solver,
            penalty=self.penalty,
            adaptive=adaptive,
            keep_mean=keep_mean,
            draws=draws,
            point_lr=point_lr if point_lr is not None else lr if adaptive else 1e-3,
            scale=self.scale,
            evaluations=self.evaluations_per_step,
        )
        assembly.check(name for name, _ in named)
        self._parts = [  # by parameter group
            assembly.parts(members, self.state, noise.key(group["seed"], "initial"))
            for group, members in zip(self.param_groups, self._members, strict=True)
        ]
        solved = all(isinstance(part, (SolvedBlock, Points)) for part in self._all_parts())
        if max_log_precision_step is None and not self.penalty.positive and not solved:
            raise ValueError(
                f"max_log_precision_step is None; penalty {type(self.penalty).__name__} needs it: precisions can turn negative"
            )

        self._choose_path(fused)

    @property
    def fused(self) -> bool:
        """Whether the passes over large mean-field parameters are compiled."""
        return any(group["fused"] for group in self.param_groups)

    def _choose_path(self, fused: bool | None) -> None:
        """Compile the passes, or not; ``fused``: what was asked for, or where a saved state comes from."""
        shards = [part for part in self._all_parts() if isinstance(part, Shards)]
        numbers = sum(part.compilable() for part in shards)
        wanted = numbers >= WORTH if fused is None else fused and numbers > 0
        device = next((member.parameter.device for part in shards for member in part.all_members), torch.device("cpu"))
        chosen = wanted and device.type != "meta" and why_not(device) is None  # of sizes alone, nothing is compiled
        if device.type != "meta":  # copies in different paths would drift apart
            tensors = (member.parameter for part in shards for member in part.all_members)
            meshes = [tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)]
            meshes += [] if self._draw_groups.mesh is None else [self._draw_groups.mesh]
            # Who holds no large shard has nothing to compile, whatever the others do.
            chosen = all_agree(chosen or numbers == 0, dict.fromkeys(meshes), device) and numbers > 0
        for part in shards:
            part.fused = chosen and part.compilable() > 0
        for group in self.param_groups:
            group["fused"] = chosen

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, during construction only: the prior is assigned to all parameters at once."""
        if hasattr(self, "_parts"):
            raise ValueError("parameters cannot be added later: build a new optimizer with all of them")
        super().add_param_group(param_group)

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """All parameters with their names, which are those of the module without torch's wrappers."""
        given = [name for group in self.param_groups for name in group["param_names"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return list(zip(canonical_names(given), parameters, strict=True))

    def sampled(self) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Name, parameter and state of every parameter with a mean-field posterior in closed form."""
        for part in self._all_parts():
            if isinstance(part, Shards):
                for member in part.all_members:
                    yield member.name, member.parameter, self.state[member.parameter]

    def blocks(self) -> Iterator[Block]:
        """The blocks: parameters that a family describes together."""
        for part in self._all_parts():
            if isinstance(part, Block):
                yield part

    def probed(self) -> Iterator[Probed]:
        """What the last steps say of the convergence of every sampled tensor or block, on this rank's shards."""
        for group, part in self._grouped_parts():
            if part.probes is not None:
                yield from part.probes.probed(self.state, group["momentum"])

    def initial_precisions(self) -> dict[str, float]:
        """The precision that each sampled parameter started with, by name; the prior's is included."""
        return {m.name: m.initial_precision for members in self._members for m in members if m.prior.sampled}

    @property
    def evaluations_per_step(self) -> int:
        """Gradient evaluations (forward and backward passes over the batch) that one step takes, over all draw groups."""
        return self.draws_per_step * (2 if self.paired else 1)

    def _all_parts(self) -> Iterator[Part]:
        return chain.from_iterable(self._parts)

    def _grouped_parts(self) -> Iterator[tuple[dict[str, Any], Part]]:
        """Every part with the parameter group that it belongs to."""
        for group, parts in zip(self.param_groups, self._parts, strict=True):
            for part in parts:
                yield group, part
