"""What processes of a cluster print reaches the job's output without prefixes and noise; nothing that says something is lost."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from proxscore.terminal import Progress
from proxscore.training.ray import logs

PREEMPTION = (
    "\x1b[31m[2026-11-30 00:06:28,824 E 2380 2411] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: "
    "'335486354164ce8aaa71768501000000' has constructor arguments in the object store and max_restarts > 0. If the arguments "
    "in the object store go out of scope or are lost, the actor restart will fail.\x1b[0m"
)
TIP = (
    "/venv/lib/ray/_private/worker.py:2120: FutureWarning: Tip: In future versions of Ray, Ray will no longer override "
    "accelerator visible devices env var if num_gpus=0 or num_gpus=None (default). To enable this behavior and turn off this "
    "error message, set RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0"
)
TF32 = (
    "/venv/lib/torch/_inductor/compile_fx.py:282: UserWarning: TensorFloat32 tensor cores for float32 matrix multiplication "
    "available but not enabled. Consider setting `torch.set_float32_matmul_precision('high')` for better performance."
)
GLOO = "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
STEP = str(Progress("run-adamw", 3, 9, 1.0, ("NLL 1.0",)))
#: What must be seen, though it looks like what is left out.
TELLING = [
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "    warnings.warn(",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "[2026-11-30 00:06:28,824 E 2380 2411] core_worker.cc:2465: Actor with class name: 'RayTrainWorker' and ID: 'ab' died",
    "[2026-11-30 00:06:28,824 E 2380 2411] core_worker.cc:900: PreemptionWatcher: the node is about to be preempted",
    "[E1130 00:00:00 ProcessGroupGloo.cpp:1] [Gloo] Rank 1 timed out after 1800000ms",
    "/venv/lib/ray/train/a.py:1: FutureWarning: checkpoints of this form will not be read",
    "UserWarning: TensorFloat32 is not supported by this device, and results are wrong",
]


def test_notes_that_a_user_can_do_nothing_about_are_left_out_with_the_code_below_them() -> None:
    lines = [PREEMPTION, TIP, "  warnings.warn(", TF32, "  warnings.warn(", GLOO]
    assert logs.sorted_out(lines) == ([], [])


def test_progress_is_told_apart_and_everything_else_is_kept_in_its_order() -> None:
    mixed = [PREEMPTION, *TELLING[:3], STEP, *TELLING[3:], TIP]
    assert logs.sorted_out(mixed) == ([STEP], TELLING)


def test_a_line_of_code_is_left_out_only_below_a_note() -> None:
    below_error = ["ValueError: no", "  warnings.warn(", PREEMPTION, "  warnings.warn("]
    assert logs.sorted_out(below_error) == ([], ["ValueError: no", "  warnings.warn(", "  warnings.warn("])


@pytest.mark.parametrize("is_err", [False, True])
def test_what_ray_hands_over_is_printed_without_its_prefix(is_err: bool, capsys: pytest.CaptureFixture[str]) -> None:
    batch: dict[str, Any] = {
        "ip": "127.0.0.1",
        "localhost": "127.0.0.1",
        "pid": 4242,
        "job": "01",
        "is_err": is_err,
        "actor_name": "TrainController",
        "task_name": None,
        "lines": [PREEMPTION, STEP, f"a word on {'stderr' if is_err else 'stdout'}"],
    }
    told: list[str] = []
    with logs.shown_by(told.append):
        dispatcher.emit(batch)
        out, err = capsys.readouterr()
    dispatcher.emit(batch)  # nobody listens any more
    assert told == [STEP]
    assert (err if is_err else out).splitlines() == [f"a word on {'stderr' if is_err else 'stdout'}"]
    assert (out if is_err else err) == ""
    assert capsys.readouterr() == ("", "")
