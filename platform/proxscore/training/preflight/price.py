"""Hours of devices, and what they cost by the table in the configuration."""

from __future__ import annotations

import math

from proxscore.config import Config


def device_hours(config: Config, device: str, workers: int, seconds: float) -> tuple[float, str]:
    """Hours of GPUs, or of CPU cores, that so many workers take; and what they are hours of."""
    hours = workers * seconds / 3600
    if device == "cuda":
        return hours, "GPU"
    return hours * max(config.training.cpus_per_worker, 1), "CPU core"


def price(config: Config, device: str, workers: int, seconds: float) -> str:
    """The price of so many workers for so long, by ``cost``, in words; where there is none, what to set."""
    cost = config.cost
    hours, unit = device_hours(config, device, workers, seconds)
    if cost.instance is not None:
        count = math.ceil(workers / cost.workers_per_instance)
        total = count * seconds / 3600 * cost.hourly[cost.instance]
        return f"{_amount(total)} {cost.currency}: {count} x {cost.instance} at {cost.hourly[cost.instance]:g} an hour"
    name = "gpu" if device == "cuda" else "cpu"
    if name not in cost.hourly:
        return f"not known: set cost.hourly.{name}, the price of an hour of one {unit}"
    return f"{_amount(hours * cost.hourly[name])} {cost.currency} at {cost.hourly[name]:g} an hour of one {unit}"


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would take."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"
