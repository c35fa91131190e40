"""What machines cost, and how fast they and their network are: settings that only an estimate reads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proxscore.config.section import Section


class CostConfig(Section):
    """Of ``--dry-run`` alone: prices and speeds. There is no default price, as it would be wrong for nearly everybody."""

    # Price of an hour by name: cpu (a core), gpu (one, with its machine), or an instance, as {p4d.24xlarge: 32.8}.
    hourly: dict[str, float] = Field({})
    currency: str = Field("USD", min_length=1, max_length=12)  # of these prices
    instance: str | None = None  # a name in hourly: workers run on machines of this type; null: by core or by GPU
    workers_per_instance: int = Field(1, ge=1, le=10_000)  # that run on one such machine
    # What workers run on, with its memory and its network, as training/preflight/hardware.py has them; null: this machine.
    device: Literal["A100", "H100", "H200"] | None = None
    utilisation: float = Field(
        0.4, gt=0, le=1
    )  # of that device's operations per second, in forward and backward passes
    # Between two workers, Gbit/s; null: of the device, or 3 (gloo on one machine), 200 (its GPUs), or 10 (a network).
    bandwidth_gbit: float | None = Field(None, gt=0)
    # Of a message, microseconds; null: of the device, or 600 (gloo on one machine), 30 (its GPUs), or 500 (a network).
    latency_us: float | None = Field(None, ge=0)
    # What a worker's device computes in training, TFLOP/s; null: utilisation of the device's, or measured on this machine.
    device_tflops: float | None = Field(None, gt=0)
    storage_gb_s: float = Field(1.0, gt=0)  # that the storage of checkpoints takes from all workers together, GB/s

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for name, price in self.hourly.items():
            if price < 0:
                raise ValueError(f"hourly.{name} is {price:g}: a price is 0 or more")
        if self.instance is not None and self.instance not in self.hourly:
            named = ", ".join(self.hourly) or "nothing"
            raise ValueError(f"instance={self.instance} has no price: hourly has {named}; add hourly.{self.instance}")
        return self
