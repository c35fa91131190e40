"""Checkpoints by torch.distributed.checkpoint: weights, variational state, counters; they reshard as Adam's state does.

Tensors are in safetensors files, one for each rank, and everything else in ``checkpoint.json``, which also lists the files.
Nothing in a checkpoint is a pickle: what lies in a storage is only ever parsed, never executed.

:func:`save` writes while its caller waits. :func:`stage` only copies the state into the host's memory, and gives a function that
writes the copy, from another thread, while training goes on.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from proxscore.config import ConfigError
from proxscore.inference.convergence import KEY
from proxscore.posterior import Posterior
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.tensors import separate
from proxscore.storage import replacing, write

INDEX_FILE = "checkpoint.json"
_FORMAT = 2  # 1 was torch's own, with pickles


class Snapshot:
    """The state of a run, which a checkpoint holds: module, optimizer, and a dictionary of plain values."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
        self.module, self.optimizer, self.progress = module, optimizer, progress

    def state_dict(self) -> dict[str, Any]:
        weights, optimizer = get_state_dict(self.module, self.optimizer)
        return {"weights": weights, "optimizer": optimizer, "progress": dict(self.progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.module, self.optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"]
        )
        self.progress.update(state["progress"])


class _Writer(HuggingFaceStorageWriter):
    """A safetensors file for each rank, and, when all are written, the index with the plain values.

    Args:
        later: whether files are written by :meth:`write_out`, which talks to no other rank, from copies of the tensors.
    """

    def __init__(self, folder: Path, values: dict[str, Any], *, later: bool = False) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._values, self._later = folder, values, later
        self._waiting: list[tuple[str, dict[str, Tensor], dict[str, str]]] = []
        self._index: str | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file from the tensors where they lie: torch's own way to it takes two copies of them all."""
        name = _gen_file_name(1, 1, plan.storage_data["shard_index"])
        tensors, offsets, results = {}, {}, []
        for item in plan.items:
            assert item.tensor_data is not None
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            tensors[item.index.fqn] = tensor = _copied(tensor) if self._later else tensor.detach().cpu()
            offsets[item.index.fqn] = {SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets}
            results.append(WriteResult(item.index, tensor.nbytes, _StorageInfo(name, 0, tensor.nbytes)))
        if tensors:
            described = {
                CUSTOM_METADATA_KEY: json.dumps(offsets),
                DCP_VERSION_KEY: str(HF_DCP_VERSION),
                FORMAT_KEY: FORMAT_VALUE,
            }
            self._waiting.append((name, tensors, described))
        if not self._later:
            self.write_out()
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = sorted({Path(result.storage_data.relative_path).name for each in results for result in each})
        self._index = json.dumps({"format": _FORMAT, "files": files, "values": self._values}, indent=1) + "\n"
        if not self._later:
            self.write_out()

    def write_out(self) -> None:
        """Write what was not written yet; the memory of the copies is free then."""
        while self._waiting:
            name, tensors, described = self._waiting[-1]
            with replacing(self._folder / name) as partial:
                save_file(tensors, partial, described)
            self._waiting.pop()
        if self._index is not None:
            write(self._folder / INDEX_FILE, self._index)
            self._index = None


def _copied(tensor: Tensor) -> Tensor:
    """A copy in memory of the host that forked processes do not hold: loaders would until their epoch ends."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor.detach().to("cpu", copy=True)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_DONTFORK"):  # on Linux
        memory.madvise(mmap.MADV_DONTFORK)
    copy = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor.detach())


def save(folder: Path, snapshot: Snapshot) -> None:
    """Write this rank's part of a checkpoint into a folder (of its own or shared by the ranks).

    Raises:
        RuntimeError: it cannot be written, for example because the disk is full.
        ConfigError: the state holds what is neither a tensor nor a plain value; names it.
    """
    _collect(folder, snapshot, later=False)


def stage(folder: Path, snapshot: Snapshot) -> Callable[[], None]:
    """Copy this rank's part of a checkpoint into the host's memory.

    Returns:
        What writes it into the folder, once, and frees the copy. It talks to no other rank, so that another thread may call
        it while training changes the state. It raises as :func:`save` does.

    Raises:
        RuntimeError, ConfigError: as :func:`save`.
    """
    writer, step = _collect(folder, snapshot, later=True), snapshot.progress["step"]

    def write_out() -> None:
        try:
            writer.write_out()
        except (OSError, SafetensorError) as error:
            raise _unwritten(step, error) from error

    return write_out


def _collect(folder: Path, snapshot: Snapshot, *, later: bool) -> _Writer:
    """Agree with the other ranks on who writes what, and write it, unless that is for later."""
    flat, _ = flatten_state_dict(snapshot.state_dict())
    values = {name: value for name, value in flat.items() if not isinstance(value, Tensor)}
    for name, value in values.items():
        if not _plain(value):
            raise ConfigError(
                f"{name} is a {type(value).__name__}, which cannot be saved in a checkpoint: only tensors and plain values can"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _interrupts():
            tensors = separate({name: value for name, value in flat.items() if isinstance(value, Tensor)})
            writer = _Writer(folder, values, later=later)
            dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    except (CheckpointException, OSError) as error:
        raise _unwritten(snapshot.progress["step"], error) from error
    return writer


def _unwritten(step: int, error: BaseException) -> RuntimeError:
    return RuntimeError(f"the checkpoint at step {step} cannot be written: {_reason(error)}")


def save_posterior(folder: Path, posterior: Posterior, rank: int, statistics: DrawStatistics | None = None) -> None:
    """Write a posterior into a folder: every rank its shards, or the first one the whole that all have; all ranks call it.

    Args:
        statistics: of the draws' BatchNorm layers, which are kept beside it.
    """
    if posterior.sharded or rank == 0:
        posterior.save(folder)
    if statistics is not None and rank == 0:
        statistics.save(folder)


def damage(folder: Path) -> str | None:
    """Say in a few words what of a checkpoint is missing or cut short; none: all its files are there, and whole."""
    try:
        files, _ = _index(folder)
    except ConfigError as error:
        return str(error)
    for name in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{name} ({(folder / name).stat().st_size:,} bytes) cannot be read ({_reason(error)})"
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in files:
            return f"{path.name} belongs to another checkpoint"
    return None


def step_of(folder: Path) -> int:
    """Read the step that a checkpoint was written at.

    Raises:
        ConfigError: it is damaged.
    """
    return int(_index(folder)[1]["progress.step"])


def load(folder: Path, snapshot: Snapshot) -> None:
    """Read a checkpoint in place, with any number of ranks.

    Raises:
        ConfigError: the checkpoint is of another architecture or method, or is damaged; names what does not fit.
    """
    try:
        _, values = _index(folder)
        state = snapshot.state_dict()
        flat, paths = flatten_state_dict(state)
        tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
        reader = HuggingFaceStorageReader(str(folder))
        held = reader.read_metadata().state_dict_metadata.keys()
        for name in [name for name in tensors if name.endswith(f".{KEY}") and name not in held]:
            del tensors[name]  # of an earlier version: what convergence is judged by begins anew
            del flat[name]
        for name in [name for name in flat if name.startswith("progress.") and name not in values]:
            del flat[name]  # of an earlier version, which did not count it
        for name in [name for name in flat if name.endswith(".fused") and name not in values]:
            values[name] = False  # of an earlier version, which compiled nothing
        surplus = sorted({*held, *values} - flat.keys()) + sorted(flat.keys() - {*held, *values})
        if surplus:
            raise ValueError(f"{surplus[0]} is on one side only")
        with _interrupts():
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
        for name, value in (tensors | values).items():
            set_element(state, paths[name], tuple(value) if isinstance(flat[name], tuple) else value)
        snapshot.load_state_dict(state)
    except (
        *(AttributeError, CheckpointException, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError),
    ) as error:
        raise ConfigError(f"checkpoint {folder} does not fit this model and method: {_reason(error)}") from error


def _index(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Names of the files of a checkpoint, and its plain values.

    Raises:
        ConfigError: there is no index, or it is not what :func:`save` writes.
    """
    try:
        index = json.loads((folder / INDEX_FILE).read_text())
        files, values = index["files"], index["values"]
        known = index["format"] == _FORMAT and isinstance(values, dict)
        if not known or not all(isinstance(name, str) and name == Path(name).name for name in files):
            raise ValueError("not of this format")
    except FileNotFoundError:
        if (folder / ".metadata").exists():
            raise ConfigError("it is of an earlier version, whose checkpoints held code (pickles)") from None
        raise ConfigError(f"{INDEX_FILE} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{INDEX_FILE} cannot be read ({type(error).__name__})") from None
    return files, values


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_plain, value.values()))
    return (
        all(map(_plain, value))
        if isinstance(value, (list, tuple))
        else isinstance(value, (bool, int, float, str, type(None)))
    )


def _reason(error: BaseException) -> str:
    """The first cause in what DCP raises, in one line."""
    cause = next(iter(getattr(error, "failures", {}).values()), (error,))
    return " ".join(str(cause[0]).split())[:300]


@contextmanager
def _interrupts() -> Iterator[None]:
    """Within the context, Ctrl-C is Ctrl-C: DCP wraps all that is raised within it in an error of its own."""
    try:
        yield
    except CheckpointException as error:
        if any(isinstance(failure, KeyboardInterrupt) for failure, _ in error.failures.values()):
            raise KeyboardInterrupt from error
        raise
