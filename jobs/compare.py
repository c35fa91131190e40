"""Methods x seeds on one task at an equal budget of gradient evaluations; table, curves and MLflow runs.

python jobs/compare.py --config jobs/configs/compare_fashion_mnist.yaml task.data.path=/data/fashion-mnist

Every method runs as it is given and, where learning rates are listed, at the one that validation data prefer (as many
trials for each). Cells run side by side, one CPU (training.cpus_per_worker) or GPU each; the same name goes on where a
comparison ended, and repeats only cells that failed. Exit status: 0 all cells finished; 1 some failed; 2 refused, one
line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxscore import job


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file: base, methods, seeds, budget")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides of the file, or of its base: budget=2"
    )
    options = parser.parse_intermixed_args(arguments)
    return job.run(
        lambda: compare(options.config, options.overrides),
        "compare",
        interrupted="the comparison is marked KILLED; the same name goes on with its cells",
    )


def compare(path: Path, overrides: list[str]) -> int:
    from proxscore.training.comparison import (
        driver,
        figure,
        study,
        table,
    )  # here: importing Ray and MLflow takes seconds
    from proxscore.training.comparison.plan import plan
    from proxscore.training.comparison.settings import load

    comparison, source = load(path, overrides)
    planned = plan(comparison, source)
    with driver.connected(planned), study.recorded(planned, comparison) as tracked:
        found = driver.run(planned, tracked.run_id, lambda line: print(line, flush=True))
        report = planned.folder / "report"
        rows, text = table.write(planned, found, report)
        figure.draw(planned, rows).savefig(report / "comparison.png", dpi=150)
        tracked.artifacts(report, "comparison")
        failed = sum(record["status"] == "failed" for record in found.values())
        tracked.metrics({"cells": len(found), "cells_failed": failed})
    print(f"\n{text}")
    for file in sorted(report.iterdir()):
        print(f"{file.suffix[1:]:<10} {file}")
    print(f"browse     {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {planned.config.tracking.uri}")
    if failed:
        print(f"error: {failed} of {len(found)} cells failed; name={planned.name} tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
