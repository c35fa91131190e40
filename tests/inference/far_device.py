"""A GPU that is not there: tensors on it have shapes and no numbers, and whoever asks for a number is found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class WaitError(AssertionError):
    """The host asked for a number that a device computes, and would have had to wait for it."""


class FarDevice(TorchDispatchMode):
    """Within the context, ``cuda`` tensors are torch's fake ones; operations on the CPU are what they are.

    Raises:
        WaitError: from an operation for which the host waits: ``item``, ``tolist``, ``bool``, ``nonzero``, a copy to the host,
            and one from the host without ``non_blocking``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> FarDevice:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        given, _ = tree_flatten((arguments, named or {}))
        far = any(isinstance(each, FakeTensor) for each in given)
        if not far and not any(isinstance(each, torch.device) and each.type == "cuda" for each in given):
            with unset_fake_temporarily():
                return function(*arguments, **(named or {}))
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise WaitError(str(function))
        from_host = any(isinstance(each, Tensor) and not isinstance(each, FakeTensor) for each in given)
        asynchronous = (named or {}).get("non_blocking", False) or any(each is True for each in arguments[2:])
        if (
            function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            and from_host
            and not asynchronous
        ):
            raise WaitError(f"{function} takes numbers from the host, which waits until they are there")
        result = function(*arguments, **(named or {}))
        if far and isinstance(result, Tensor) and result.device.type == "cpu":
            raise WaitError(f"{function} brings numbers to the host")
        return result
