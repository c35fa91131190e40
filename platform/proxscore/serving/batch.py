"""Batch prediction: pieces of the input are predicted by one process or by many, each into a file of its own.

The files of the output appear whole. What is there already is not predicted again, so that a job that was stopped goes on with
the same command; ``_predictions.json`` says what it was started with, and another command on the same folder is refused. A row
that cannot be predicted is in the output, with its reason in the column ``error``.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxscore.config import ConfigError
from proxscore.predictor.opening import load
from proxscore.serving.pieces import Piece, images_of
from proxscore.storage import exists, filesystem, put, read

RECORD = "_predictions.json"  # which readers of a folder of Parquet files pass over


@dataclass(frozen=True)
class Wanted:
    """How rows are predicted.

    Attributes:
        draws, seed: of the posterior.
        all: with a column for each class.
        quantiles: of numbers and series.
        column, keep: of tables of images.
        source: the table of series.
        last_layer: draws of the last layer alone.
    """

    draws: int | Literal["auto"]
    seed: int
    all: bool = False
    quantiles: tuple[float, ...] = ()
    column: str | None = None
    keep: tuple[str, ...] = ()
    source: str = ""
    last_layer: bool = False


@dataclass(frozen=True)
class Job:
    """What workers are told: how to predict, and where the answers go.

    Attributes:
        pieces: how many there are.
        posterior: folder with the posterior's files, or where MLflow has it; every worker reads it.
        output: folder or URI.
        overrides: settings of the task and of tracking.
    """

    posterior: str
    pieces: int
    wanted: Wanted
    output: str
    device: str = "auto"
    overrides: tuple[str, ...] = ()

    def part(self, piece: Piece) -> str:
        """The name of the file with a piece's answers."""
        return f"part-{piece.number:05d}-of-{self.pieces:05d}.parquet"


@dataclass(frozen=True)
class Done:
    """A piece that has been predicted: its rows, and those of them that could not be, with reasons of the first few."""

    number: int
    rows: int
    failed: int
    reasons: tuple[str, ...] = ()


class Worker:
    """Predicts pieces, and writes their files; a process has one.

    Args:
        job: of which pieces come.
        predictor: the posterior, where it is open.
    """

    def __init__(self, job: Job, predictor: Any = None) -> None:
        self.job = job
        self.predictor: Any = predictor or load(job.posterior, device=job.device, overrides=job.overrides)
        self.files, self.folder = filesystem(job.output)

    def __call__(self, piece: Piece) -> Done:
        """Predict a piece."""
        frame = self.frame(piece)
        if "error" not in frame:
            frame["error"] = None
        frame["error"] = frame["error"].astype("string")  # one type in all files, also where there is none
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
        put(self.files, f"{self.folder}/{self.job.part(piece)}", buffer.getvalue())
        failed = frame.loc[frame["error"].notna()]
        return Done(piece.number, piece.count, len(failed), tuple(dict.fromkeys(failed["error"].head(5))))

    def frame(self, piece: Piece) -> pd.DataFrame:
        """The answers for a piece."""
        return self._series(piece) if self.predictor.takes == "series" else self._images(piece)

    def _images(self, piece: Piece) -> pd.DataFrame:
        wanted = self.job.wanted
        images, along = images_of(piece, wanted.column, wanted.keep)
        found = self.predictor.predict(images, wanted.draws, wanted.seed, errors="keep", last_layer=wanted.last_layer)
        frame = found.to_frame(all=wanted.all, quantiles=wanted.quantiles)
        for place, (name, values) in enumerate(along.items()):
            if name in frame:
                raise ConfigError(f"--keep {name}: predictions have a column of this name")
            frame.insert(place, name, values)
        frame.insert(0, "row", range(piece.first, piece.first + piece.count))
        return frame

    def _series(self, piece: Piece) -> pd.DataFrame:
        table = series_table(self.predictor, self.job.wanted.source, piece.names)
        try:
            return self._forecast(table, piece.names)
        except ConfigError:
            if len(piece.names) > 1:  # one of them is at fault: the others are predicted without it
                return pd.concat([self._alone(table, name) for name in piece.names], ignore_index=True)
            return self._alone(table, piece.names[0])

    def _alone(self, table: pd.DataFrame, name: tuple[Any, ...]) -> pd.DataFrame:
        try:
            return self._forecast(table, (name,)).assign(error=None)
        except ConfigError as error:
            frame = pd.DataFrame({"series": ["/".join(map(str, name))], "error": [str(error)]})
            return frame.assign(timestamp=pd.Series([pd.NaT], dtype="datetime64[ns]"))

    def _forecast(self, table: pd.DataFrame, names: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
        wanted, ids = self.job.wanted, self.predictor.columns.id_columns
        if ids:
            table = table.merge(pd.DataFrame(list(names), columns=ids), on=ids)
        return self.predictor.predict(table, wanted.draws, wanted.seed).to_frame(quantiles=wanted.quantiles)


def series_table(predictor: Any, source: str, names: Sequence[tuple[Any, ...]] = ()) -> pd.DataFrame:
    """A long table from its files, with names as texts.

    Args:
        names: series whose rows are wanted; of Parquet files the row groups that cannot hold them are not read.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    from proxscore.forecasting.sources.table import read_table

    return read_table(predictor.columns, Path(source), names).to_pandas()


def series_names(predictor: Any, source: str) -> list[tuple[Any, ...]]:
    """The names of all series of a table, in its order."""
    from proxscore.forecasting.sources.table import read_ids

    ids = read_ids(predictor.columns, Path(source))
    if ids is None:
        return [(predictor.columns.target_column,)]
    return [tuple(row) for row in ids.to_pandas().drop_duplicates().itertuples(index=False)]


def begin(job: Job, found: Sequence[Piece], told: dict[str, Any]) -> list[Piece]:
    """Open the output, and find what is left to do.

    Args:
        found: all pieces.
        told: what the job was started with, beside the job's own.

    Returns:
        Pieces without a file.

    Raises:
        ConfigError: the folder holds other predictions, or cannot be written.
    """
    try:
        files, folder = filesystem(job.output)
        before = read(files, f"{folder}/{RECORD}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"--output {job.output}: cannot be used: {' '.join(str(error).split())}") from error
    pieces = json.dumps([piece.described() for piece in found]).encode()
    now = json.loads(json.dumps(told | asdict(job.wanted) | {"pieces": hashlib.sha256(pieces).hexdigest()}))
    if before is not None:
        try:
            held = json.loads(before)["started_with"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--output {job.output}: {RECORD} is damaged: take another folder") from error
        for key, value in now.items():
            if held.get(key) != value:
                raise ConfigError(
                    f"--output {job.output} holds predictions with {key}={_short(held.get(key))}, now it is {_short(value)}: "
                    "take another folder, or remove this one"
                )
    else:
        files.create_dir(folder, recursive=True)
        put(files, f"{folder}/{RECORD}", json.dumps({"started_with": now}, indent=2) + "\n")
    return [piece for piece in found if not exists(files, f"{folder}/{job.part(piece)}")]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def seconds_per_row(worker: Worker, piece: Piece) -> float:
    """What a row takes, from the first few of a piece; reading them counts, writing answers does not."""
    few, more = (replace(piece, count=n, names=piece.names[:n]) for n in (min(piece.count, 4), min(piece.count, 32)))
    worker.frame(few)  # makes the draws
    taken = []
    for part in (few, more):
        started = time.perf_counter()
        worker.frame(part)
        taken.append(time.perf_counter() - started)
    if more.count == few.count:
        return taken[1] / more.count
    return max(taken[1] - taken[0], 0.05 * taken[1]) / (more.count - few.count)


def run(job: Job, left: Sequence[Piece], workers: int, show: Callable[[str], None]) -> Iterator[Done]:
    """Predict what is left, in this process (``workers`` is 0) or by so many of a Ray cluster."""
    rows, total, started, shown = 0, sum(piece.count for piece in left), time.monotonic(), time.monotonic()
    for done in _here(job, left) if not workers else _on_ray(job, left, workers):
        rows += done.rows
        if (now := time.monotonic()) - shown > 2 or rows == total:
            rate, shown = rows / max(now - started, 1e-6), now
            show(f"predicted {rows:,}/{total:,} · {rate:,.0f} per second · {(total - rows) / rate:,.0f} s left")
        yield done


def _here(job: Job, left: Sequence[Piece]) -> Iterator[Done]:
    worker = Worker(job)
    for piece in left:
        yield worker(piece)


def _on_ray(job: Job, left: Sequence[Piece], workers: int) -> Iterator[Done]:
    """By Ray Data: each worker is a process that keeps the posterior, and takes one piece after another."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans, and hints to its own users
    gpu = 1 if job.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers else 0
    pieces = ray.data.from_items(
        [{"piece": json.dumps(asdict(piece))} for piece in left], override_num_blocks=len(left)
    )
    found = pieces.map_batches(
        PieceActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,
        num_gpus=gpu,
    )
    for row in found.iter_rows():
        yield Done(int(row["number"]), int(row["rows"]), int(row["failed"]), tuple(json.loads(row["reasons"])))


class PieceActor:
    """A worker as Ray Data calls it: with pieces as JSON."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Predict the pieces of a batch."""
        done = [self.worker(Piece.of(json.loads(text))) for text in batch["piece"]]
        return {
            "number": [each.number for each in done],
            "rows": [each.rows for each in done],
            "failed": [each.failed for each in done],
            "reasons": [json.dumps(each.reasons) for each in done],
        }
