"""Steps that the device takes, or skips, before the host knows which: nothing waits for a GPU within a step.

The host launches work long before a GPU runs it. Looking at a number on the GPU, such as whether a gradient is finite, would
let the host wait for everything that it has launched, and then the GPU for the host. So the step is computed on the GPU for
both cases, each number kept where the scores are not finite, and the host counts the step as taken. What it was arrives while
the next forward and backward passes run; where it was skipped, the counts are taken back before the next step needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_COUNTS = {"momentum_product", "skipped_in_a_row"}


class Fetched:
    """Numbers on their way from a device to the host.

    Args:
        numbers: on any device; later changes of it do not count.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._host = numbers.to("cpu", copy=True)

    def values(self) -> Any:
        """The numbers as Python's, in lists if they have dimensions; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class Undecided:
    """A step of which the device alone knows whether it is taken.

    Args:
        found: whether scores were not finite, on the device: zero or one, a single number of any shape.
        groups: the optimizer's, before they count the step.
        names: of the parameters that take part.
        finite: whether the gradients of each are finite, on the device.
        counters: tensors that count the steps of a parameter, before this one.
    """

    def __init__(
        self,
        found: Tensor,
        groups: Iterable[dict[str, Any]],
        names: Sequence[str] = (),
        finite: Tensor | None = None,
        counters: Sequence[Tensor] = (),
    ) -> None:
        found = found.reshape(())
        #: Whether the step is taken, on the device.
        self.go = found == 0
        self.names, self.finite = names, finite
        self._found, self._counters = Fetched(found), [(counter, counter.clone()) for counter in counters]
        self._before = [{name: group[name] for name in _COUNTS & group.keys()} for group in groups]

    def skipped(self) -> bool:
        """Whether the step was skipped."""
        return bool(self._found.values())

    def take_back(self, groups: Iterable[dict[str, Any]]) -> None:
        """Let everything count as if the step had never been taken."""
        for group, before in zip(groups, self._before, strict=True):
            group.update(before)
        for counter, value in self._counters:
            counter.copy_(value)
