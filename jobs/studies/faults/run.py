"""What faults cost: workers, nodes and drivers are killed at random times, nodes are drained, join and leave.

python jobs/studies/faults/run.py --times 10 --output faults.json

A Ray cluster of a head and two nodes runs on this machine, each node with processes of its own. A job with two workers
trains a small Vision Transformer on scikit-learn's digits, and suffers a fault so many times in a row, each at a random
moment: 20 to 80 steps after training has gone on from the last one, and up to a second.

    worker   one of the two is killed (SIGKILL)
    node     one of the two nodes is killed with all its processes; another one joins
    drain    one node gets notice that it will be taken away in 10 s (a spot reclaim); another one joins. The run may
             not use up a failure (max_failures=0), and makes no checkpoint but those on notice
    driver   the job itself is killed, and started again under its name
    elastic  (min_workers=1) one node is killed and not replaced until training has gone on without it; then one joins,
             and training goes on with two workers again

A run passes if the job ends well, every step is recorded exactly once, and, but for elastic, posterior and test metrics
equal those of an undisturbed run bit for bit. An elastic run takes four times the steps and must reach the undisturbed
run's test accuracy to 0.05. --others repeats the tests of the faults that need no cluster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import ROOT, Bench, Trial  # type: ignore[import-not-found]  # beside this file

FAULTS = ("worker", "node", "drain", "driver", "elastic")
#: Faults that need no cluster, by the test that makes them.
OTHERS = {
    "full disk during a checkpoint": "tests/training/test_local_loop.py -k cannot_be_written",
    "truncated checkpoint": "tests/training/test_local_loop.py -k damaged",
    "tracking server away": "tests/tracking/test_server_away.py -k 'wait_for_the_server or outlives or away_for_a_while'",
    "unreadable image": "tests/training/test_unreadable_rows.py",
    "NaN batch": "tests/training/test_local_loop.py -k finite",
}


def others(times: int) -> dict[str, int]:
    """How often the tests of each other fault passed."""
    passed = dict.fromkeys(OTHERS, 0)
    for fault, tests in OTHERS.items():
        for _ in range(times):
            command = f"{sys.executable} -m pytest -q -p no:cacheprovider {tests}"
            passed[fault] += subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
        print(f"{fault}: {passed[fault]} of {times}", flush=True)
    return passed


def table(trials: list[Trial], steps: int) -> str:
    """Markdown: one row per fault."""
    rows = [
        f"| fault | in a row | at steps (of {steps}; elastic: {4 * steps}) | trained again, steps: median (most) | "
        "seconds until training went on: median (most) | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for trial in trials:
        again, outage = [fault.again for fault in trial.faults], [fault.outage for fault in trial.faults]
        reached = " ".join(str(fault.reached) for fault in trial.faults)
        if trial.faults:
            numbers = (
                f"{statistics.median(again):.0f} ({max(again)}) | {statistics.median(outage):.0f} ({max(outage):.0f})"
            )
            outcome = "; ".join(trial.problems) or ("well" if trial.fault == "elastic" else "bit for bit")
            rows.append(f"| {trial.fault} | {len(trial.faults)} | {reached} | {numbers} | {outcome} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=10, help="each fault, in a row")
    parser.add_argument("--epochs", type=int, default=80, help="of each job; 20 steps each")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the faults")
    parser.add_argument("--others", action="store_true", help="the tests of faults that need no cluster, instead")
    parser.add_argument("--output", type=Path, help="JSON file; finished runs are kept after each")
    options = parser.parse_args()
    if options.others:
        return 0 if all(count == options.times for count in others(options.times).values()) else 1
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options.epochs, options.seed)
        try:
            bench.reference()
            print(
                f"undisturbed: {bench.steps} steps, {bench.seconds:.0f} s from the first of them to the end", flush=True
            )
            for fault in options.faults:
                trials.append(bench.trial(fault, options.times))
                print(f"{fault}: {'; '.join(trials[-1].problems) or 'passed'}", flush=True)
                if options.output is not None:
                    options.output.write_text(json.dumps([asdict(trial) for trial in trials], indent=2) + "\n")
        finally:
            bench.cluster.shutdown()
    print(table(trials, bench.steps))
    return 1 if any(trial.problems for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
