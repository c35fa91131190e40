"""What people find of a finished run in MLflow: its description, its data sets, and its place in the model registry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from proxscore.config import Config, MethodSection
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.terminal.tables import ACRONYMS
from proxscore.tracking import TrackedRun
from proxscore.tracking.registry import Registered, register
from proxscore.tracking.runs import NOTE
from proxscore.training import baselines


def describe_run(
    tracked: TrackedRun,
    config: Config,
    method: MethodSection,
    results: Mapping[str, Any],
    headline: Sequence[str],
    model_id: str | None,
) -> str:
    """Write the text that stands on a run's page, in Markdown: what was trained, the headline table, and how to load it."""
    verdict = Verdict.of_json(results.get(VERDICT))
    validated = results.get("validated", {})
    lines = [
        f"{method.kind} on {config.task.data.kind}: {config.task.network}, {results['parameters']:,} parameters, "
        f"{results['evaluations']:,} gradient evaluations."
    ]
    if verdict is not None:  # the page shows the first lines alone until one asks for more
        lines += ["", f"The posterior is **{verdict.answer}** ({verdict.scale})."]
    header = [
        f"&emsp;{name.upper() if name in ACRONYMS else name}&emsp;" for name in headline
    ]  # cells have no margin there
    lines += ["", f"| test split |{'|'.join(header)} |", f"|---|{'---:|' * len(headline)}"]
    for variant, metrics in results["test"].items():
        numbers = [metrics.get(name, math.nan) for name in headline]
        cells = " | ".join("undefined" if math.isnan(number) else f"{number:.4f}" for number in numbers)
        lines.append(f"| {variant.replace('_', ', ')} | {cells} |")
    if (beside := baselines.line(dict(results))) is not None:
        lines += ["", f"Beside methods that need no training it is **{beside}**."]
    if "nll" in validated:
        lines += ["", f"Validation NLL {validated['nll']:.4f}, {validated['rows']:,} rows, {validated['draws']} draws."]
    if verdict is not None and (why := (*verdict.reasons, *verdict.failures)):
        lines += ["", f"Why it is {verdict.answer}:", "", *(f"* {reason}" for reason in why)]
    if model_id is not None:
        takes = "images" if config.task.kind == "vision" else "table"
        lines += [
            "",
            "```python",
            "import proxscore",
            "",
            f'predictor = proxscore.load("models:/{model_id}")',
            f"predictor.predict({takes}).to_frame()",
            "```",
        ]
    text = "\n".join(lines)
    tracked.describe({}, {NOTE: text[:5000]})
    if model_id is not None:
        tracked.client.set_logged_model_tags(model_id, {NOTE: text[:5000]})
    return text


def register_run(
    tracked: TrackedRun, config: Config, results: Mapping[str, Any], model_id: str | None, text: str
) -> Registered | None:
    """Register the model of a run under ``tracking.register_as``; none: it is not asked for, or the run has no model."""
    if config.tracking.register_as is None or model_id is None:
        return None
    verdict = Verdict.of_json(results.get(VERDICT))
    tags = {} if verdict is None else {"verdict": verdict.answer}
    made = register(
        tracked.client,
        config.tracking.register_as,
        model_id,
        tracked.run_id,
        results.get("validated", {}),
        tags,
        text,
    )
    tracked.describe({}, {"registered": f"{made.name} version {made.version}", "registered.champion": made.reason})
    return made
