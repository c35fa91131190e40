"""The methods that one training loop serves: one file each, with its section of the configuration beside what it builds.

A method is a :class:`proxscore.methods.Method`, a torch optimizer with defaults for what most do not need. README.md in this
folder says how to add one.
"""

from __future__ import annotations

from torch import nn

from proxscore.config import ConfigError, MethodError, MethodSection
from proxscore.config.extras import needs
from proxscore.methods.method import Method, RunLength, Setup

__all__ = ["Method", "RunLength", "Setup", "build_method", "check_running_statistics"]


def build_method(config: MethodSection, setup: Setup) -> Method:
    """The optimizer that a method's section describes, with every refusal as a setting's.

    Raises:
        MethodError: a setting or network that the method refuses, or a package that is not installed.
    """
    try:
        method: Method = config.build(setup)
    except ModuleNotFoundError as error:
        raise MethodError(needs(f"method.kind={config.kind}", str(error.name), config.extra)) from error
    except ConfigError as error:
        raise MethodError(str(error)) from error
    except (ValueError, OverflowError) as error:  # of a part that knows no settings, such as a prior
        raise MethodError(f"method: {' '.join(str(error).split())}") from error
    if not isinstance(method, Method):
        raise MethodError(
            f"method.kind={config.kind}: {type(config).__qualname__}.build gave a {type(method).__name__}; it must give a "
            "proxscore.methods.Method"
        )
    return method


def check_running_statistics(config: MethodSection, module: nn.Module, norm_batches: int) -> None:
    """Refuse draws of weights below BatchNorm layers that keep the statistics which other weights left.

    Args:
        config: section of a method.
        norm_batches: training batches that set the statistics anew for each draw.

    Raises:
        MethodError: there are such layers, and no batches.
    """
    inner = config.member
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if layers and not norm_batches and not inner.last_layer_only() and not inner.fixed_weights:
        raise MethodError(
            f"evaluation.norm_batches=0: the network has {len(layers)} BatchNorm layers ({layers[0]}, ...), whose statistics "
            f"belong to no draw of method.kind={inner.kind}; use evaluation.norm_batches=20"
        )
