"""A posterior over the weights of a network: seeded draws put into a module, and storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from proxscore.config import ConfigError
from proxscore.inference import ProximalScore, kernels, noise
from proxscore.inference.gathered import reshard
from proxscore.inference.layout import Layout
from proxscore.inference.names import named_parameters, persistent_buffers
from proxscore.posterior import architecture, moments
from proxscore.posterior.convergence import COLD, KEY, Verdict
from proxscore.posterior.joint import Joint
from proxscore.posterior.shards import DESCRIPTION_FILE, WEIGHTS_FILE, is_sharded
from proxscore.posterior.tensors import whole

#: The name of an optimizer's parameter in the module that a posterior is of.
NameOf = Callable[[Tensor], str]


@dataclass(repr=False)
class Posterior:
    """Mean-field Gaussian over named weights, other families for some of them; with neither, a point estimate.

    Tensors may be sharded (DTensors of a model under FSDP2): draws are then made shard by shard, without communication,
    and are the same draws as those of the gathered posterior.

    Args:
        mean: posterior mean by parameter name; of point-estimated parameters, their value.
        precision: 1 / variance by parameter name, for the parameters with a mean-field posterior.
        joint: parameters with other families.
        buffers: the module's persistent buffers (running statistics) by name.
        description: what it takes to use it (architecture, data, prior, schedules, versions); plain JSON values.
        extra_state: what layers with a ``get_extra_state`` gave, by layer name: tensors, or plain JSON values.

    Other kinds of posteriors are subclasses with a ``kind`` of their own, under which they are saved and loaded.
    """

    kind: ClassVar[str] = "gaussian"
    single: ClassVar[str] = "mean"  # what the prediction without draws is called
    kinds: ClassVar[dict[str, type[Posterior]]] = {}

    mean: dict[str, Tensor]
    precision: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    joint: list[Joint] = field(default_factory=list)
    extra_state: dict[str, Any] = field(default_factory=dict)
    _live: bool = field(default=False, init=False, repr=False, compare=False)  # a draw is in the means

    def __init_subclass__(cls) -> None:
        Posterior.kinds[cls.kind] = cls

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> Posterior:
        """The current posterior of a module in training; refers to the training state, copies nothing.

        With an optimizer that is no :class:`ProximalScore` (or none), it is the point estimate in the weights, and what
        the optimizer's ``posterior_from(point, name_of)`` makes of it, if it has that method.

        The optimizer's parameters are found in the module by identity, whatever they were called when it was built: those
        of a part of the module, or of a wrapped one. Parameters that it does not hold are point estimates.

        Raises:
            ConfigError: the optimizer samples a parameter that is none of the module's, or its draw loop is running.
            FloatingPointError: the last step has diverged, or was one too many that were skipped.
        """
        if isinstance(optimizer, ProximalScore):
            if optimizer.drawing:
                raise ConfigError(
                    "a posterior is taken after the draw loop: within it the weights are a draw, and no mean"
                )
            optimizer.settle()
        reshard(module)
        parameters = named_parameters(module)
        names = {id(parameter): name for name, parameter in parameters.items()}

        def name_of(parameter: Tensor) -> str:
            if id(parameter) not in names:
                raise ConfigError(
                    f"the optimizer samples a parameter of shape {tuple(parameter.shape)} that is none of the module's: pass the "
                    "module whose parameters it was built with"
                )
            return names[id(parameter)]

        mean = {name: parameter.detach() for name, parameter in parameters.items()}
        extra = architecture.extra_state_of(module)
        found = cls(mean, {}, persistent_buffers(module), dict(description or {}), extra_state=extra)
        if isinstance(optimizer, ProximalScore):
            found.precision = {name_of(p): state["precision"] for _, p, state in optimizer.sampled()}
            for block in optimizer.blocks():
                members = [(name_of(p), p, start) for _, p, start in block.layout.members]
                found.joint.append(Joint(Layout(block.family, members), block.state))
        makes = getattr(optimizer, "posterior_from", None)
        return found if makes is None else makes(found, name_of)

    @property
    def verdict(self) -> Verdict | None:
        """What training found of its convergence, where it was judged."""
        return Verdict.of_json(self.description.get(KEY))

    def told(self) -> list[str]:
        """Lines for whoever uses it: what its standard deviations stand for, and a warning where it is not sound."""
        verdict = self.verdict
        if verdict is None:
            return []
        cold = f"; {COLD}" if verdict.cold else ""
        warning = [] if verdict.warning is None else [f"warning    {verdict.warning}"]
        return [f"posterior  {verdict.scale}{cold}", *warning]

    def __repr__(self) -> str:
        """In a line: the numbers, what their standard deviations stand for, and whether they arrived."""
        count, verdict = sum(tensor.numel() for tensor in self.mean.values()), self.verdict
        told = "" if verdict is None else f", {verdict.scale}, {verdict.answer}"
        return f"{type(self).__name__}({self.family}, {count:,} numbers{told})"

    @property
    def random(self) -> bool:
        """Whether anything is: draws of a point estimate are all the same."""
        return bool(self.precision or self.joint)

    @property
    def varying(self) -> set[str] | None:
        """Names of the parameters in which draws differ; none where draws are made of more than weights and buffers."""
        return {*self.precision, *(name for joint in self.joint for name in joint.names)}

    @property
    def family(self) -> str:
        """The kinds of families, joined by ``+``: ``mean_field``, ``mean_field+low_rank``; ``point`` where there is none."""
        kinds = {"mean_field": bool(self.precision)} | {joint.layout.family.kind: True for joint in self.joint}
        return "+".join(kind for kind, present in kinds.items() if present) or "point"

    def indices(self, draws: int) -> list[int]:
        """The indices of so many draws; a set of samples has no more than those that it holds."""
        return list(range(draws)) if self.random else [0]

    def shuffled(self, draws: int, seed: int) -> list[int]:
        """The indices of so many draws, of which any first ones are a fair sample; of independent draws, in their order."""
        return self.indices(draws)

    def draw(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Weights of one draw: the same for the same (seed, index), wherever and however sharded it is made.

        Point-estimated parameters are returned as they are.

        Raises:
            ConfigError: another draw is in the means, which are a module's weights.
        """
        self._check_means()
        weights = dict(self.mean)
        for name in self.precision:
            weights[name] = torch.empty_like(self.mean[name])
            self._sample_(name, weights[name], noise.local(self.mean[name]), index, seed)
        for joint in self.joint:
            weights |= {name: torch.empty_like(self.mean[name]) for name in joint.names}
        self._together_(weights, index, seed)
        return weights

    # ------------------------------------------------------------ moments, by name

    def sample(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """n draws, (n, *shape) by name: draws 0 to n - 1 of this seed, see :meth:`draw`.

        Raises:
            ConfigError: fewer than one, a sharded posterior, or draws that are not of weights.
        """
        return moments.sample(self, n, seed)

    def sd(self) -> dict[str, Tensor]:
        """Standard deviations by name, shaped as the parameters; zero for point estimates.

        Raises:
            ConfigError: a sharded posterior, or draws that are not of weights.
        """
        return {name: variance.sqrt() for name, variance in self._variances().items()}

    def covariance(self, names: Sequence[str] | None = None) -> Tensor:
        """The covariance matrix of these parameters' numbers: in the order of ``names`` (none: all, in the order of
        ``mean``), each parameter's in the order of ``flatten()``. A point estimate has zeros.

        Raises:
            ConfigError: an unknown name, more than 20,000 numbers, a sharded posterior, or draws that are not of weights.
        """
        return self._covariance(moments.places(self, names))

    def _variances(self) -> dict[str, Tensor]:
        return moments.variances(self)

    def _covariance(self, at: Mapping[str, slice]) -> Tensor:
        return moments.covariance(self, at)

    def _check_means(self) -> None:
        if self._live:
            raise ConfigError(
                "the means of this posterior are the weights of a module, which hold a draw now: leave use() first, or take "
                "posterior.gather() before it"
            )

    def _together_(self, targets: Mapping[str, Tensor], index: int, seed: int) -> None:
        """What of a draw parameters have in common; the independent part is in the targets already."""
        for joint in self.joint:
            joint.draw_(targets, index, seed)

    def put(self, targets: Mapping[str, Tensor], index: int, seed: int = 0) -> None:
        """Write the weights of a draw into tensors by name, placed and sharded as a module's parameters are: the numbers that
        :meth:`use` puts into the module. Those of all parameters in which draws differ (``varying``) must be among them.

        Raises:
            ConfigError: another draw is in the means, which are a module's weights.
        """
        self._check_means()
        with torch.no_grad():
            for name, target in targets.items():
                mean, weights = noise.local(self.mean[name]), noise.local(target)
                if name in self.precision:
                    self._sample_(name, target, mean.to(weights.device), index, seed)
                else:
                    weights.copy_(mean)
            self._together_(targets, index, seed)

    def _sample_(self, name: str, target: Tensor, mean: Tensor, index: int, seed: int) -> None:
        weights, precision = noise.local(target), noise.local(self.precision[name])
        stream = noise.NormalStream(weights.device, weights.dtype)
        key, start = noise.key(seed, "posterior", index, name), noise.shard_offset(target, name)
        for piece, values in stream.pieces(key, start, len(weights)):
            kernels.sample_(weights[piece], mean[piece], precision[piece].to(weights.device), values)

    @contextmanager
    def use(self, module: nn.Module, index: int | None = None, seed: int = 0) -> Iterator[nn.Module]:
        """Within the context, the module's weights are draw ``index`` (none: the mean); afterwards what they were.

        Buffers are left alone; see :meth:`load_into`.

        Raises:
            ConfigError: the module is of another architecture, or a draw of it is in its own means.
        """
        reshard(module)
        parameters = named_parameters(module)
        architecture.check_parameters(self, parameters)
        self._check_means()
        before = {name: noise.local(parameter).clone() for name, parameter in parameters.items()}
        self._live = any(
            noise.local(self.mean[n]).data_ptr() == noise.local(p).data_ptr() for n, p in parameters.items()
        )
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    weights, mean = noise.local(parameter), noise.local(self.mean[name])
                    if mean.data_ptr() == weights.data_ptr():  # a posterior in training: its means are the weights
                        mean = before[name]
                    if index is not None and name in self.precision:
                        self._sample_(name, parameter, mean.to(weights.device), index, seed)
                    else:
                        weights.copy_(mean)
                if index is not None:
                    self._together_(parameters, index, seed)
            torch.clear_autocast_cache()
            yield module
        finally:
            self._live = False
            reshard(module)
            with torch.no_grad():
                for name, values in before.items():
                    noise.local(parameters[name]).copy_(values)
            torch.clear_autocast_cache()

    def load_into(self, module: nn.Module) -> nn.Module:
        """Put the mean weights and the buffers into a module of the same architecture, sharded as the posterior is, or whole.

        Raises:
            ConfigError: the architectures differ; names the first parameter, buffer or layer that does not fit.
        """
        return architecture.load_into(self, module)

    # ------------------------------------------------------------ storage

    @property
    def sharded(self) -> bool:
        """Whether its tensors lie on several ranks, which then save, load and gather it together."""
        return is_sharded(tensor for tensors in self.groups().values() for tensor in tensors.values())

    def gather(self) -> Posterior:
        """An unsharded copy on the CPU. With sharded tensors every rank must call it; all but rank 0 get empty tensors."""
        states = [whole(joint.gathered()) for joint in self.joint]
        gathered = self._with_tensors(whole)
        joint = [
            Joint(Layout(old.layout.family, [(name, gathered.mean[name], 0) for name in old.names]), state)
            for old, state in zip(self.joint, states, strict=True)
        ]
        return replace(gathered, joint=joint)

    def detached(self) -> Posterior:
        """A copy with tensors of its own, sharded as these are: it stays as it is when a module in training goes on.

        Raises:
            ConfigError: parameters that a family describes together.
        """
        return self._independent()._with_tensors(
            lambda tensors: {name: tensor.detach().clone() for name, tensor in tensors.items()}
        )

    def _independent(self) -> Posterior:
        if self.joint:
            kinds = ", ".join(sorted({joint.layout.family.kind for joint in self.joint}))
            raise ConfigError(f"a posterior of family {kinds} cannot be kept in shards beside others: use mean_field")
        return self

    def _with_tensors(self, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Posterior:
        """The same posterior with other tensors, but for those of ``joint``."""
        return replace(self, mean=change(self.mean), precision=change(self.precision), buffers=change(self.buffers))

    def save(self, folder: str | Path) -> Path:
        """Write ``posterior.json`` (readable) and ``posterior.safetensors`` (no pickle) into a folder; returns it.

        A sharded posterior is not gathered: every rank calls this, and writes a file of its own shards,
        ``posterior-00001-of-00002.safetensors`` and so on, beside ``posterior.safetensors.index.json``. Blocks of a joint
        family are gathered on the first rank.

        Raises:
            ConfigError: a family that holds code instead of settings.
        """
        from proxscore.posterior import stored  # which needs all kinds of posteriors

        return stored.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, like: nn.Module | DeviceMesh | None = None) -> Posterior:
        """Read what :meth:`save` wrote, on any number of ranks; needs neither Ray nor MLflow.

        Args:
            like: a module under FSDP2, or the mesh that it is sharded over: each rank, which must all call this, reads its
                own shards alone (of blocks of a joint family, all). Without it, this process reads the whole.

        Raises:
            ConfigError: a file is missing or damaged, or the posterior is of another architecture than ``like``.
        """
        from proxscore.posterior import stored

        return stored.load(Path(folder), like)

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors but those of joint families, by group (a word without a dot) and name."""
        extra = {name: state for name, state in self.extra_state.items() if isinstance(state, Tensor)}
        return {"mean": self.mean, "precision": self.precision, "buffer": self.buffers} | (
            {"extra": extra} if extra else {}
        )

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is saved: a header of plain JSON values, and tensors by ``group.name``.

        Tensors are sharded as they are, but for those of blocks, which the first rank has as a whole.
        """
        from proxscore.posterior import stored

        return stored.pack(self)

    @classmethod
    def from_groups(
        cls, folder: Path, description: dict[str, Any], groups: dict[str, dict[str, Tensor]], joint: list[Joint]
    ) -> Posterior:
        """The posterior of a saved header's description and tensors; see :meth:`groups`.

        Raises:
            ConfigError: tensors that no posterior of this kind has.
        """
        mean, precision, buffers, extra = (groups.pop(name, {}) for name in ("mean", "precision", "buffer", "extra"))
        plain = description.pop("extra_state", {})
        if not isinstance(plain, dict):
            raise ConfigError(f"{folder / DESCRIPTION_FILE}: extra_state must be a dictionary")
        found = cls(mean, precision, buffers, description, joint, extra | plain)
        for group, named in groups.items():
            raise ConfigError(f"{folder / WEIGHTS_FILE}: not the tensors of a posterior ({group}.{next(iter(named))})")
        return found
