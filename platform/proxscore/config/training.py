"""Training, evaluation and tracking, whatever the task and the method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from proxscore.config.section import Section, check_path, expanded

MAX_EPOCHS = 1_000_000
MAX_ROWS = 10_000_000  # of a batch
MAX_WORKERS = 100_000
MAX_DRAWS = 100_000
MAX_SEED = 2**40
#: Shifts and corruptions of images by name; :mod:`proxscore.vision.shifts` has what they do.
SHIFTS = ("rotated", "noisy", "photographs")
CORRUPTIONS = ("gaussian_noise", "blur", "brightness", "contrast", "rotation", "jpeg", "pixelation")


class TrainingConfig(Section):
    """The loop and where it runs. ``workers: 0`` is the same loop in one plain process, without Ray."""

    epochs: float = Field(10, gt=0, le=MAX_EPOCHS)  # passes over the training data by the posterior's steps
    batch_size: int = Field(100, gt=0, le=MAX_ROWS)  # global: over all workers
    accumulate: int = Field(1, ge=1, le=MAX_ROWS)  # micro-batches per step
    workers: int = Field(2, ge=0, le=MAX_WORKERS)  # 0: the same loop in one plain process, without Ray
    # Go on with so few while nodes are away; null: always all.
    min_workers: int | None = Field(None, ge=1, le=MAX_WORKERS)
    resize_interval: float = Field(60, gt=0)  # seconds between looks for nodes that have joined, with min_workers
    # Copies of sharded weights and state; each takes its part of a batch (HSDP).
    replicate: int = Field(1, ge=1, le=MAX_WORKERS)
    # Groups of workers that score different draws of a step on the same batch.
    draw_groups: int = Field(1, ge=1, le=MAX_WORKERS)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: GPUs if there are enough
    cpus_per_worker: float = Field(1, ge=0.01, le=10_000)  # that Ray sets aside for each
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights and state stay fp32
    compile: bool = False  # torch.compile the network
    activation_checkpointing: bool = False  # compute activations of a block again in the backward pass, for less memory
    meta_init: bool = False  # initial weights are made shard by shard: no worker ever holds the whole model
    # Processes of a worker that read its training rows. Null: none for data in memory; one or two where images are decoded.
    loader_processes: int | None = Field(None, ge=0, le=1000)
    validate_every: float = Field(1, gt=0)  # epochs
    # Evaluate and keep the state whose validation NLL was the lowest, which has a checkpoint, in place of the last one. Null: of
    # forecasts, whose later data are never quite like the earlier ones.
    early_stopping: bool | None = None
    checkpoint_every: float = Field(1, gt=0)  # epochs
    keep_checkpoints: int = Field(2, ge=1, le=MAX_EPOCHS)  # the best by validation NLL; beside them, always the newest
    profile: bool = False  # leave a trace of a few early steps in MLflow (profile/rank-0.json.gz)
    max_failures: int = Field(3, ge=-1, le=MAX_EPOCHS)  # of workers, before the run is given up; -1: any number
    # A folder, or a URI that pyarrow or fsspec reads (s3://..., gs://...); PROXSCORE_STORAGE of the environment is the default.
    storage: str = Field(default_factory=lambda: os.environ.get("PROXSCORE_STORAGE") or "runs", min_length=1)

    @field_validator("storage")
    @classmethod
    def _possible(cls, storage: str) -> str:
        storage = str(expanded(storage)) if storage.startswith("~") else storage
        check_path(Path(storage))
        return storage

    @field_validator("accumulate")
    @classmethod
    def _of_a_row_or_more(cls, accumulate: int, earlier: ValidationInfo) -> int:
        rows = earlier.data.get("batch_size", accumulate)  # there is none where it was refused itself
        if accumulate > rows:
            raise ValueError(f"a batch is cut into at most as many micro-batches as it has rows, batch_size={rows}")
        return accumulate


class EvaluationConfig(Section):
    """How predictions are evaluated. The same fixed draws serve the whole data set."""

    draws: int = Field(16, ge=1, le=MAX_DRAWS)  # of the weights, whose predictions are averaged; at the end
    validation_draws: int = Field(4, ge=1, le=MAX_DRAWS)  # during training
    batch_size: int = Field(500, gt=0, le=MAX_ROWS)  # rows of one forward pass
    seed: int = Field(0, ge=0, le=MAX_SEED)  # of the draws
    bins: int = Field(15, ge=2, le=10_000)  # of confidence, for calibration errors and diagrams
    # Also evaluate the test images under these: turned by 30 degrees (rotated), with noise (noisy), photographs in their place
    # (photographs), or a corruption in a strength from 1 to 5 (blur_3); see vision.shifts and vision.corruptions.
    shifts: list[str] = Field([])
    temperature_scaling: bool = False  # also report the test metrics at the temperature that validation data prefer
    # Training batches that set BatchNorm statistics of each draw; 0: as trained.
    norm_batches: int = Field(20, ge=0, le=1_000_000)

    @field_validator("shifts")
    @classmethod
    def _known(cls, shifts: list[str]) -> list[str]:
        for shift in shifts:
            corruption, _, strength = shift.rpartition("_")
            if shift not in SHIFTS and not (corruption in CORRUPTIONS and strength in ("1", "2", "3", "4", "5")):
                raise ValueError(
                    f"{shift!r} is none: take {', '.join(SHIFTS)}, or a corruption ({', '.join(CORRUPTIONS)}) and its strength "
                    "from 1 to 5, as blur_3"
                )
        return shifts


class TrackingConfig(Section):
    """MLflow. ``uri: null`` takes ``MLFLOW_TRACKING_URI``, else SQLite in the current folder."""

    uri: str | None = None  # null: MLFLOW_TRACKING_URI, else SQLite in the current folder (mlflow.db)
    experiment: str = "proxscore"  # that the runs belong to
    # A finished run's posterior is also a model of MLflow's, which predicts by itself; false: its files are artifacts of the run.
    log_model: bool = True
    # Register it under this name; the alias champion goes to it if its validation NLL is lower on the same data.
    register_as: str | None = Field(None, pattern=r"^[^/:.%\"'@\s][^/:%\"'@]{0,199}$")
    system_metrics: bool = False  # record CPU, memory, disk, network and GPU of the driver's machine
    interval: float = Field(2, ge=0)  # seconds between reports to the driver; each step's values are recorded
