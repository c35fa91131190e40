"""Names of parameters, buffers and layers as the module without wrappers has them, and what kind of parameter each is.

torch wraps modules for many ends, and each wrapper adds to the names of what it holds: ``torch.compile``
(``_orig_mod.``), activation checkpointing (``_checkpoint_wrapped_module.``), the first FSDP (``_fsdp_wrapped_module.``),
``DistributedDataParallel``, ``DataParallel`` and ``AveragedModel`` (``module.``). The last is also a name that people give:
whether it is a wrapper's is decided by the class that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

Kind = Literal["weight", "bias", "norm"]
T = TypeVar("T")

_ADDED_BY_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_WRAPPERS_OF_MODULE = (
    DistributedDataParallel,
    DataParallel,
    AveragedModel,
)  # each holds what it wraps as its ``module``


def canonical(name: str) -> str:
    """A name without the parts that wrappers add; ``module`` stays, as the name does not tell whether a wrapper added it."""
    return ".".join(part for part in name.split(".") if part not in _ADDED_BY_WRAPPERS)


def canonical_names(names: Iterable[str]) -> list[str]:
    """Names without what wrappers add; a leading ``module.`` that all of them have is taken for a wrapper's, too."""
    found = [canonical(name) for name in names]
    while found and all(name.startswith("module.") for name in found):
        found = [name.removeprefix("module.") for name in found]
    return found


def named_parameters(module: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """Parameters of a module by canonical name; a tied one under its first name, unless duplicates are kept."""
    return _renamed(module, module.named_parameters(remove_duplicate=remove_duplicate))


def named_buffers(module: nn.Module, *, remove_duplicate: bool = True) -> dict[str, Tensor]:
    """Buffers of a module by canonical name; a shared one under its first name, unless duplicates are kept."""
    return _renamed(module, module.named_buffers(remove_duplicate=remove_duplicate))


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The submodules by canonical name; a wrapper has the name of the module that it holds, and gives way to it."""
    return _renamed(module, module.named_modules(), wrappers=True)


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a module's ``state_dict`` holds, each once, by canonical name."""
    saved = [
        (f"{path}.{name}" if path else name)
        for path, layer in module.named_modules()
        for name in layer._buffers
        if name not in layer._non_persistent_buffers_set
    ]
    persistent = set(_renamed(module, ((name, None) for name in saved)))
    return {name: buffer for name, buffer in named_buffers(module).items() if name in persistent}


def classifier_layers(module: nn.Module) -> tuple[str, ...]:
    """The names of a network's classifier layers, as timm records them (``pretrained_cfg["classifier"]``); none: it does not."""
    names = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def parameter_kinds(module: nn.Module) -> dict[str, Kind]:
    """Whether each parameter is a weight, a bias, or belongs to a normalisation layer, by canonical name.

    A layer normalises if it is one of torch's normalisations or a class of such a name (``...Norm``, ``...Norm2d``). Biases
    are vectors that call themselves so (``bias``, ``bias_ih_l0``, ``in_proj_bias``); other vectors and numbers, such as layer
    scales, count as norms: their start is no zero either.
    """
    kinds: dict[str, Kind] = {}
    for path, layer in named_layers(module).items():
        for leaf, parameter in layer.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            kinds[name] = "norm" if _normalises(layer) else _by_name(leaf, parameter.ndim)
    return {name: kinds[name] for name in named_parameters(module)}


def kinds_by_name(dimensions: dict[str, int]) -> dict[str, Kind]:
    """What kind each parameter is, from its name and number of dimensions: a layer whose ``weight`` is a vector normalises."""
    kinds: dict[str, Kind] = {}
    for name, ndim in dimensions.items():
        module, _, leaf = name.rpartition(".")
        sibling = f"{module}.weight" if module else "weight"
        kinds[name] = "norm" if ndim <= 1 and dimensions.get(sibling, 2) <= 1 else _by_name(leaf, ndim)
    return kinds


def _by_name(leaf: str, ndim: int) -> Kind:
    if ndim > 1:
        return "weight"
    return "bias" if "bias" in leaf.split("_") or leaf.endswith("bias") else "norm"


def _normalises(layer: nn.Module) -> bool:
    torchs = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return isinstance(layer, torchs) or type(layer).__name__.rstrip("123d").lower().endswith("norm")


def _renamed(module: nn.Module, named: Iterable[tuple[str, T]], *, wrappers: bool = False) -> dict[str, T]:
    """Values by the names that they have without wrappers.

    Raises:
        ValueError: two of them would have the same.
    """
    held = {
        f"{path}.module" if path else "module"
        for path, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _WRAPPERS_OF_MODULE)
    }
    found: dict[str, T] = {}
    for name, value in named:
        parts = name.split(".") if name else []
        kept = [p for i, p in enumerate(parts) if p not in _ADDED_BY_WRAPPERS and ".".join(parts[: i + 1]) not in held]
        plain = ".".join(kept)
        if plain in found and not wrappers:
            raise ValueError(f"{name}: the module has another {plain} once wrappers are left out of the names")
        found[plain] = value
    return found
