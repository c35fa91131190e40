"""What a trial of a sweep costs beyond its training, and how long the first command of the README takes.

A sweep of eight trials of one epoch on scikit-learn's digits runs as ``proxscore tune`` runs it, two at a time. What a trial
costs is the sweep's time from the first trial on, less what the loop itself took of it, divided by the number of trials.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SWEEP = """\
name: speed
task: {model: {name: small_cnn, kwargs: {width: 8, hidden: 32}}, data: {kind: digits}}
method: {kind: proximal_score}
training: {workers: 1, epochs: 1, batch_size: 100, cpus_per_worker: 1}
evaluation: {draws: 2, validation_draws: 1}
tune: {trials: TRIALS, top: 1, seeds: [0], scheduler: none}
"""


def seconds_of(arguments: list[str], folder: Path) -> float:
    """Wall time of a command; its output is in ``log``.

    Raises:
        RuntimeError: it failed; names the end of its output.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", "proxscore", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (folder / "log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stdout + done.stderr)[-500:]}")
    return time.perf_counter() - started


def rows(quick: bool) -> list[dict[str, Any]]:
    """The table: two sweeps, of few and of more trials, whose difference is what trials take."""
    few, more = (2, 4) if quick else (4, 16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = []
        for trials in (few, more):
            (folder / "sweep.yaml").write_text(SWEEP.replace("TRIALS", str(trials)).replace("speed", f"speed-{trials}"))
            seconds.append(seconds_of(["tune", "--config", "sweep.yaml"], folder))
        # One epoch of 1,437 images as a process of its own takes it, without its start.
        plain = [f"training.epochs={epochs}" for epochs in (1, 11)]
        alone = []
        (folder / "plain.yaml").write_text(
            "\n".join(line for line in SWEEP.splitlines() if not line.startswith("tune"))
        )
        for epochs in plain:
            settings = ["training.workers=0", "training.validate_every=100", "training.checkpoint_every=100", epochs]
            alone.append(
                seconds_of(
                    ["train", "--config", "plain.yaml", f"name=epochs-{epochs.partition('=')[2]}", *settings], folder
                )
            )
        each, epoch = (seconds[1] - seconds[0]) / (more - few), (alone[1] - alone[0]) / 10
        table = [
            {"what": f"sweep of {few} trials, whole command", "seconds": f"{seconds[0]:.1f}"},
            {"what": f"sweep of {more} trials, whole command", "seconds": f"{seconds[1]:.1f}"},
            {"what": "a further trial, two side by side", "seconds": f"{each:.1f}"},
            {"what": "an epoch of it in the loop", "seconds": f"{epoch:.2f}"},
        ]
        if not quick:
            table.append(
                {
                    "what": "train --config quickstart",
                    "seconds": f"{seconds_of(['train', '--config', 'quickstart'], folder):.1f}",
                }
            )
        return table


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(" | ".join(map(str, row.values())))
