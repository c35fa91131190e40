"""What can be trusted and what cannot, in plain sentences with the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["good", "caution", "bad", "plain"]

# Bounds of the tones. They are conventions of this page, and stand in its last section.
CALIBRATED, MISCALIBRATED = 0.02, 0.05  # ECE beyond what chance makes
HOTTER = 0.05  # share of the NLL that a temperature saves
FEW = 100  # images that say little
SAME = 0.005  # nats that make no difference
FAR_WORSE = 2.0  # NLL of a draw over that of the mean
SLIPPED, MOSTLY_SLIPPED = 0.2, 0.5  # of outside images at 95% of inside ones
OVERCONFIDENT = 0.1  # mean confidence above accuracy, under the strongest corruptions


@dataclass(frozen=True)
class Sentence:
    """One line of the headline, and whether it is good news."""

    tone: Tone
    text: str


def headline(results: dict[str, Any], told: Sequence[str]) -> list[Sentence]:
    """The sentences of a report, the posterior's own warnings first.

    Args:
        results: as :meth:`proxscore.report.compute.Report.compute` gave them.
        told: lines of :meth:`proxscore.posterior.Posterior.told`.
    """
    found = [Sentence(*_told(line)) for line in told]
    for part in (_inside, _draws, _temperature, _classes, _shift, _outside, _selective, _sets, _cost):
        found += part(results)
    return found


def _told(line: str) -> tuple[Tone, str]:
    kind, _, text = line.partition(" ")
    text = text.strip()
    return ("bad" if kind == "warning" else "plain"), text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _inside(results: dict[str, Any]) -> Iterator[Sentence]:
    inside = results["in_distribution"]
    metrics, chance = inside["metrics"], inside["ece_by_chance"]
    accuracy, confidence, ece = metrics["accuracy"], metrics["confidence"], metrics["ece"]
    excess = ece - chance
    tone: Tone = "good" if excess < CALIBRATED else "caution" if excess < MISCALIBRATED else "bad"
    way = "more" if confidence > accuracy else "less"
    if tone == "bad" and way == "less":
        tone = "caution"  # whoever relies on it errs on the safe side
    rows = round(metrics["rows"])
    if few := rows < FEW and tone == "good":
        tone = "caution"
    yield Sentence(
        tone,
        f"{percent(accuracy)} of {rows:,} images are classified correctly, at a mean confidence of "
        f"{percent(confidence)}: on average it is {abs(confidence - accuracy) * 100:.1f} points {way} sure than right. The "
        f"top-label calibration error (ECE) is {ece:.4f}, of which about {chance:.4f} would arise by chance."
        f"{' So few images say little.' if few else ''}",
    )
    sure = metrics["sure"]
    if sure:
        wrong = metrics["sure_errors"] / sure
        yield Sentence(
            "good" if wrong <= 0.1 else "bad",
            f"Of {percent(sure)} of the images it is sure (a confidence of 0.9 or more), and {percent(wrong)} of these answers "
            "are wrong.",
        )


def _draws(results: dict[str, Any]) -> Iterator[Sentence]:
    inside = results["in_distribution"]
    single, average = inside.get("single"), inside["metrics"]["nll"]
    if single is None:
        yield Sentence(
            "plain",
            "This is one set of weights, and no average over draws: what depends on their disagreement (mutual information) is "
            "not defined for it.",
        )
        return
    mean, one, called = single["nll"], inside["metrics"]["draw_nll"], single["called"]
    alone = "one member alone" if called == "member" else f"the {called} weights alone"
    if one > FAR_WORSE * mean + 0.05:
        yield Sentence(
            "bad",
            f"Single draws are far worse than {alone}: NLL {one:.3f} against {mean:.3f} (the average over draws has "
            f"{average:.3f}). The posterior is wider than its predictions support; its draws are no plausible networks.",
        )
    if average > mean + SAME:
        yield Sentence(
            "caution",
            f"The average over draws predicts worse than {alone}: NLL {average:.4f} against {mean:.4f} "
            "(--draws 0 reports the latter).",
        )
    elif average < mean - SAME:
        yield Sentence("good", f"The average over draws has NLL {average:.4f}, {alone} {mean:.4f}: draws help.")


def _temperature(results: dict[str, Any]) -> Iterator[Sentence]:
    inside = results["in_distribution"]
    before, after, temperature = inside["metrics"]["nll"], inside["tempered"]["nll"], inside["temperature"]
    if before - after > HOTTER * abs(before):
        way = "overconfident" if temperature > 1 else "underconfident"
        yield Sentence(
            "caution",
            f"Calibration data find it {way}: at temperature {temperature:.2f} NLL falls from {before:.4f} to {after:.4f}.",
        )


def _classes(results: dict[str, Any]) -> Iterator[Sentence]:
    present = [each for each in results["in_distribution"]["classes"] if each["count"]]
    worst = min(present, key=lambda each: each["recall"])
    overall = results["in_distribution"]["metrics"]["accuracy"]
    if worst["recall"] < overall - 0.05:
        yield Sentence(
            "caution",
            f"The hardest class is {worst['class']!r}: {percent(worst['recall'])} of its {worst['count']:,} images are found.",
        )


def _shift(results: dict[str, Any]) -> Iterator[Sentence]:
    shift = results["shift"]
    clean, last = shift["uncorrupted"], shift["mean"][-1]
    gap = last["confidence"] - last["accuracy"]
    tone: Tone = "bad" if gap > OVERCONFIDENT else "caution" if gap > OVERCONFIDENT / 2 else "good"
    worst = max(shift["corruptions"], key=lambda name: shift["corruptions"][name]["strengths"][-1]["nll"])
    yield Sentence(
        tone,
        f"Under corruptions of strength 5 accuracy falls from {percent(clean['accuracy'])} to {percent(last['accuracy'])} on "
        f"average, while it still claims {percent(last['confidence'])}"
        f"{': its confidence cannot be trusted on such images' if tone == 'bad' else ''}. Worst is {worst.replace('_', ' ')}.",
    )


def _outside(results: dict[str, Any]) -> Iterator[Sentence]:
    for each in results["out_of_distribution"]:
        found = each["scores"]["entropy"]
        name, best = best_score(each)
        slipped = found["fpr95"]
        tone: Tone = "good" if slipped <= SLIPPED else "caution" if slipped <= MOSTLY_SLIPPED else "bad"
        other = f" ({name.replace('_', ' ')} has {best['auroc']:.3f})" if best["auroc"] > found["auroc"] + 0.005 else ""
        yield Sentence(
            tone,
            f"Images of {each['name']!r} are told from test images by the entropy of the prediction with AUROC "
            f"{found['auroc']:.3f}{other}; where 95% of test images pass, {percent(slipped)} of them slip through. It is sure of "
            f"{percent(each['sure'])} of them.",
        )


def best_score(outside: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The name and measures of the score with the largest AUROC."""
    defined = {name: found for name, found in outside["scores"].items() if found is not None}
    name = max(defined, key=lambda score: defined[score]["auroc"])
    return name, defined[name]


def _selective(results: dict[str, Any]) -> Iterator[Sentence]:
    selective = results["selective"]
    at = dict(zip(selective["coverage"], selective["accuracy"], strict=True))
    whole = results["in_distribution"]["metrics"]["accuracy"]
    tone: Tone = "good" if at[0.8] > whole or whole == 1 else "bad"
    yield Sentence(
        tone,
        f"If the fifth of the images of which it is least sure went to a person, it would be right in {percent(at[0.8])} of the "
        f"others, instead of {percent(whole)}.",
    )


def _sets(results: dict[str, Any]) -> Iterator[Sentence]:
    sets = results["prediction_sets"]
    found = sets["methods"]["raps"]
    short, sd = sets["coverage"] - found["coverage"], spread(results, found)
    tone: Tone = "bad" if short > 3 * sd else "caution" if short > sd else "good"
    yield Sentence(
        tone,
        f"Prediction sets (RAPS) that should hold the true class in {percent(sets['coverage'])} of images do so in "
        f"{percent(found['coverage'])}, with {found['mean_size']:.2f} classes on average. By chance, {100 * sd:.1f} points more "
        "or less are usual with so many images.",
    )


def spread(results: dict[str, Any], found: dict[str, Any]) -> float:
    """Standard deviation of the observed coverage: of the rows judged, and of the calibration rows that set the threshold."""
    asked, calibration = results["prediction_sets"]["coverage"], results["prediction_sets"]["calibration_rows"]
    variance = asked * (1 - asked) * (1 / sum(found["sizes"]) + 1 / calibration)
    return float(variance**0.5)


def _cost(results: dict[str, Any]) -> Iterator[Sentence]:
    cost = results["cost"]
    if results["has_draws"]:
        yield Sentence(
            "plain",
            f"A prediction with {cost['draws']} draws takes {cost['ratio']:.1f} times as long as one plain forward pass: "
            f"{cost['seconds_per_1000']:.3g} s per 1,000 images.",
        )


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}%"
