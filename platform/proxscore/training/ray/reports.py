"""What becomes of the reports and errors of Ray Train's workers, on its controller."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.train import UserCallback

from proxscore.config import ConfigError, DivergedError, masked

if TYPE_CHECKING:
    from proxscore.tracking import Recorder

FINAL = (ConfigError, DivergedError, FloatingPointError)  # errors that another attempt cannot mend


class RecorderCallback(UserCallback):
    """Hands the reports of all workers to the recorder, on the controller: it survives the loss of any worker.

    Ray sends a copy to each worker, too, which never uses it: the recorder is unpacked where it is first used, as what it
    imports takes most of a second.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder: Recorder | None = recorder
        self._packed = b""

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            self._recorder = cloudpickle.loads(self._packed)
        return self._recorder

    def __getstate__(self) -> dict[str, Any]:
        packed = self._packed if self._recorder is None else cloudpickle.dumps(self._recorder)
        return {"_recorder": None, "_packed": packed}

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.recorder(metrics)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the run on an error that another attempt cannot mend: what a callback raises, the controller passes on.

        The worker must not return instead: if it alone is at fault, the others would wait for it in a collective.
        """
        for _, error in sorted(worker_exceptions.items()):
            for kind in FINAL:
                if isinstance(error, kind):
                    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # not also the traceback of this line
                    raise kind(last_line(error)) from None


def last_line(error: BaseException) -> str:
    """Give what an error says at its end: Ray puts the traceback of the other process before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return masked(lines[-1]) if lines else type(error).__name__
