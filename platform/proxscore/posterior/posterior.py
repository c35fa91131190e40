"""A posterior over the weights of a network: seeded draws put into a module, and storage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError
from proxscore.inference import MeanField, ProximalScore, noise
from proxscore.inference.priors import canonical

WEIGHTS_FILE = "posterior.safetensors"
DESCRIPTION_FILE = "posterior.json"


@dataclass
class Posterior:
    """Mean-field Gaussian over named weights; without ``precision``, a point estimate.

    Tensors may be sharded (DTensors of a model under FSDP2): draws are then made shard by shard, without communication,
    and are the same draws as those of the gathered posterior.

    Args:
        mean: posterior mean by parameter name; of point-estimated parameters, their value.
        precision: 1 / variance by parameter name, for the parameters that are random.
        buffers: the module's persistent buffers (running statistics) by name.
        description: what it takes to use it (architecture, data, prior, schedules, versions); plain JSON values.
    """

    mean: dict[str, Tensor]
    precision: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> Posterior:
        """The current posterior of a module in training; refers to the training state, copies nothing.

        With an optimizer that is no :class:`ProximalScore` (or none), it is the point estimate in the weights.
        """
        sampled = list(optimizer.sampled()) if isinstance(optimizer, ProximalScore) else []
        buffers = {canonical(name): value for name, value in module.state_dict().items()}
        mean = {canonical(name): parameter.detach() for name, parameter in module.named_parameters()}
        for name in mean:
            buffers.pop(name, None)
        tied = {canonical(n) for n, _ in module.named_parameters(remove_duplicate=False)} - set(mean)
        buffers = {name: value for name, value in buffers.items() if name not in tied}
        precision = {name: state["precision"] for name, _, state in sampled}
        return cls(mean, precision, buffers, dict(description or {}))

    @property
    def family(self) -> str:
        """``mean_field``, or ``point`` where nothing is random."""
        return "mean_field" if self.precision else "point"

    def draw(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Weights of one draw: the same for the same (seed, index), wherever and however sharded it is made.

        Point-estimated parameters are returned as they are.
        """
        weights = dict(self.mean)
        for name in self.precision:
            weights[name] = torch.empty_like(self.mean[name])
            self._sample_(name, weights[name], noise.local(self.mean[name]), index, seed)
        return weights

    def _sample_(self, name: str, target: Tensor, mean: Tensor, index: int, seed: int) -> None:
        weights, precision = noise.local(target), noise.local(self.precision[name])
        stream = noise.NormalStream(weights.device, weights.dtype)
        key, start = noise.key(seed, "posterior", index, name), noise.shard_offset(target, name)
        for piece, values in stream.pieces(key, start, len(weights), target.numel()):
            MeanField().sample_(weights[piece], mean[piece], precision[piece].to(weights.device), values)

    @contextmanager
    def use(self, module: nn.Module, index: int | None = None, seed: int = 0) -> Iterator[nn.Module]:
        """Within the context, the module's weights are draw ``index`` (none: the mean); afterwards what they were.

        Buffers are left alone; see :meth:`load_into`.

        Raises:
            ConfigError: the module is of another architecture.
        """
        _reshard(module)
        parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
        self._check(parameters)
        before = {name: noise.local(parameter).clone() for name, parameter in parameters.items()}
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
            torch.clear_autocast_cache()
            yield module
        finally:
            _reshard(module)
            with torch.no_grad():
                for name, values in before.items():
                    noise.local(parameters[name]).copy_(values)
            torch.clear_autocast_cache()

    def load_into(self, module: nn.Module) -> nn.Module:
        """Put the mean weights and the buffers into a module of the same architecture.

        Raises:
            ConfigError: the architectures differ; names the first parameter or buffer that does not fit.
        """
        parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
        self._check(parameters)
        buffers = {canonical(name): buffer for name, buffer in module.named_buffers()}
        for name, value in self.buffers.items():
            if name not in buffers or buffers[name].shape != value.shape:
                raise ConfigError(f"posterior of another architecture: buffer {name} does not fit the model")
        with torch.no_grad():
            for name, value in self.mean.items():
                parameters[name].copy_(value)
            for name, value in self.buffers.items():
                buffers[name].copy_(value)
        return module

    def _check(self, parameters: Mapping[str, Tensor]) -> None:
        for name in (*self.mean, *parameters):
            ours, theirs = self.mean.get(name), parameters.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                shapes = [("no such parameter" if t is None else str(tuple(t.shape))) for t in (ours, theirs)]
                raise ConfigError(
                    f"posterior of another architecture: {name} is {shapes[0]} there, {shapes[1]} in the model"
                )

    # ------------------------------------------------------------ storage

    def gather(self) -> Posterior:
        """An unsharded copy on the CPU. With sharded tensors every rank must call it; all but rank 0 get empty tensors."""
        keep = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0

        def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            result = {}
            for name, tensor in tensors.items():  # one at a time: no rank holds the model twice
                full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                result[name] = full.detach().to("cpu", copy=True) if keep else torch.empty(0)
            return result

        return Posterior(whole(self.mean), whole(self.precision), whole(self.buffers), self.description)

    def save(self, folder: str | Path) -> Path:
        """Write ``posterior.safetensors`` and ``posterior.json`` (readable, no pickle) into a folder; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        groups = {"mean": self.mean, "precision": self.precision, "buffer": self.buffers}
        tensors = {
            f"{group}.{name}": t.detach().cpu().contiguous() for group, ts in groups.items() for name, t in ts.items()
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        text = json.dumps({"format": 1, "family": self.family, **self.description}, indent=2)
        (folder / DESCRIPTION_FILE).write_text(text + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Posterior:
        """Read what :meth:`save` wrote; needs neither Ray nor MLflow.

        Raises:
            ConfigError: a file is missing or damaged; names it.
        """
        folder = Path(folder)
        for name in (DESCRIPTION_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: no posterior there ({name} is missing)")
        try:
            description = json.loads((folder / DESCRIPTION_FILE).read_text())
            tensors = load_file(folder / WEIGHTS_FILE)
        except (SafetensorError, ValueError, OSError) as error:  # ValueError: neither JSON nor UTF-8
            raise ConfigError(f"{folder}: damaged posterior: {' '.join(str(error).split())}") from None
        if not isinstance(description, dict) or description.pop("format", None) != 1:
            raise ConfigError(f"{folder / DESCRIPTION_FILE}: not a posterior of format 1")
        description.pop("family", None)
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "precision": {}, "buffer": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition(".")
            if group not in parts:
                raise ConfigError(f"{folder / WEIGHTS_FILE}: not the tensors of a posterior ({key})")
            parts[group][name] = tensor
        return cls(parts["mean"], parts["precision"], parts["buffer"], description)


def _reshard(module: nn.Module) -> None:
    """Free the gathered weights that FSDP2 keeps after a forward without backward: they would outlive the draw."""
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()
