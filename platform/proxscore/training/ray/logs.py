"""What the processes of a cluster print, as it appears in the job's own output: without Ray's prefixes, and without noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
from ray._private.worker import print_to_stdstream

from proxscore.terminal.progress import Progress

HANDLER = "ray_print_logs"  # Ray's name of what prints them

#: Notes of libraries to their developers, which a user can do nothing about. A pattern matches one message and no other.
NOISE = [
    re.compile(pattern)
    for pattern in (
        # Of an actor that Ray Train starts itself, beside each group of workers.
        r"core_worker\.cc:\d+: Actor with class name: 'PreemptionWatcher' and ID: '\w+' has constructor arguments in the object",
        # Ray's tip about the environment variables of accelerators, and torch's about TF32.
        r"FutureWarning: Tip: In future versions of Ray, Ray will no longer override accelerator visible devices env var",
        r"UserWarning: TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
        r"UserWarning: Please use the new API settings to control TF32 behavior",
        # Gloo counts its connections.
        r"^\[Gloo\] Rank \d+ is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+$",
    )
]
_SOURCE = re.compile(r"^ +(warnings\.warn\(|return |self\.|torch\.|_\w+\()")  # the line of code below a warning


@contextmanager
def shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Within the context, lines of progress go to ``show``, noise goes nowhere, and all else is printed without a prefix.

    A process has to be connected by ``ray.init(log_to_driver=True)``.
    """

    def handle(data: dict[str, Any]) -> None:
        if data.get("pid") in ("autoscaler", "raylet"):  # the cluster's own account
            print_to_stdstream(data, ignore_prefix=True)
            return
        progress, others = sorted_out(data["lines"])
        for line in progress:
            show(line)
        if others:
            print_to_stdstream(data | {"lines": others}, ignore_prefix=True)

    dispatcher.remove_handler(HANDLER)
    dispatcher.add_handler(HANDLER, handle)
    try:
        yield
    finally:
        dispatcher.remove_handler(HANDLER)


def sorted_out(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of progress, and those of all others that say something."""
    progress, others, below_noise = [], [], False
    for line in lines:
        if Progress.parse(line) is not None:
            progress.append(line)
            below_noise = False
        elif any(pattern.search(line) for pattern in NOISE):
            below_noise = "Warning: " in line
        elif below_noise and _SOURCE.match(line):
            below_noise = False
        else:
            others.append(line)
            below_noise = False
    return progress, others
