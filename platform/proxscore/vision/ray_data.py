"""Parquet images on a cluster: Ray Data reads and decodes the rows that a process asks for, ahead of it, in their order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from proxscore.config import ConfigError
from proxscore.vision.augmentation import Augmentation, view_of
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import ImageDataset, View
from proxscore.vision.sources.parquet import ParquetReader, RowGroups
from proxscore.vision.splits import Rows

if TYPE_CHECKING:
    import ray.data

CHUNK = 64  # images that leave a task at once: 38 MB of float32 at 3x224x224
_TASK_CPUS = 0.5  # at most
_STORE = 0.5  # of the cluster's object store, for what is decoded ahead, by all processes together
_READS = 2  # of a process at a time: its epoch, and in the midst of it the first batches, for BatchNorm's statistics
_LOGS = {
    "ray.data": logging.WARNING,  # announces every execution,
    "ray.data._internal.progress": logging.ERROR,  # and that it has no progress bar
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,  # traces back, twice, what is raised too
    "ray.data.exceptions": logging.CRITICAL,
}

Chunk = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """The share of a cluster that one read of one process may take.

    Processes wait for one another in every step. So each must always be able to run a task, whatever those of the others
    hold: otherwise, tasks that have read ahead as far as they may keep the CPUs that the slowest process waits for.
    """

    cpus: float
    store: float  # bytes of object store

    @classmethod
    def of(cls, workers: int, cpus_per_worker: float) -> Share:
        """An equal share of the CPUs that so many training workers leave, and of the object store."""
        import ray

        total, reads = ray.cluster_resources(), _READS * workers
        spare = total.get("CPU", 0) - workers * cpus_per_worker
        return cls(max(spare / reads, 0.01), _STORE * total.get("object_store_memory", 0) / reads)

    @property
    def cpus_per_task(self) -> float:
        """The CPUs that a task is counted as; with little to share, fewer than it uses."""
        return min(_TASK_CPUS, math.floor(100 * self.cpus) / 100)


class StreamedRows:
    """The rows of a data set of Parquet files, decoded by Ray's tasks on any node. Every node needs the files' paths.

    Args:
        dataset: of a :class:`ParquetReader`, its rows in ascending order.
        share: see there.
        augmentation: what training sees views by.

    Attributes:
        sizes: (G,) rows of the data set in each row group.
        shape: of an image, (C, H, W).
        label_shape, label_type: of a label: () of a class, (classes,) of zeros and ones, (D,) of numbers.
    """

    def __init__(self, dataset: ImageDataset, share: Share, augmentation: Augmentation | None = None) -> None:
        reader = dataset.reader
        assert isinstance(reader, ParquetReader)
        self._rows, self._labels, self._share = dataset.rows, reader.labels[dataset.rows], share
        self._groups, self._decoder, self._augmentation = reader.groups, reader.decoder, augmentation
        self.sizes: Rows = np.diff(np.searchsorted(self._rows, [*reader.groups.firsts, len(reader.labels)]))
        self.shape, self.label_shape = reader.decoder.shape, self._labels.shape[1:]
        self.label_type = self._labels.dtype

    def read(self, segments: Sequence[Rows], views: tuple[int, int] | None = None) -> Generator[Chunk, None, None]:
        """Chunks of at most ``CHUNK`` rows in the order given: ``image`` (K, C, H, W) float32, ``label`` (K, ...), ``readable``
        (K,) bool.

        Closing the iterator ends the tasks.

        Args:
            segments: item numbers of the data set; a task reads a segment, and each row group that it needs once.
            views: seed and epoch of the views that the rows are to be shown in, where there is an augmentation.

        Raises:
            ConfigError: an image that cannot be read (unless such are skipped) or a file, by name.
        """
        if not segments:
            return
        chunks = self._dataset(segments, views).iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        try:
            yield from chunks
        except Exception as error:  # Ray's, around that of a task
            raise _cause(error) from None

    def _dataset(self, segments: Sequence[Rows], views: tuple[int, int] | None) -> ray.data.Dataset:
        import ray.data  # here, so that vision works where Ray does not
        from ray.data import ExecutionResources

        for name, level in _LOGS.items():
            logging.getLogger(name).setLevel(level)
        items = [
            {"items": segment, "rows": self._rows[segment], "labels": self._labels[segment]} for segment in segments
        ]
        started = ray.data.from_items(items, override_num_blocks=len(items))
        options = started.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources.for_limits(
            cpu=self._share.cpus, object_store_memory=self._share.store
        )
        started.context.enable_progress_bars = False
        view: Callable[[Rows], View] | None = None
        if views is not None and self._augmentation is not None:
            seed, epoch = views
            view = partial(view_of, self._augmentation, seed, epoch)
        decode = partial(_decode, groups=self._groups, decoder=self._decoder, view=view)
        return started.map_batches(decode, batch_size=1, num_cpus=self._share.cpus_per_task)


def _decode(
    segment: dict[str, Any], groups: RowGroups, decoder: Decoder, view: Callable[[Rows], View] | None
) -> Iterator[Chunk]:
    items, rows = (np.asarray(segment[column][0], dtype=np.int64) for column in ("items", "rows"))
    labels = np.asarray(segment["labels"][0])
    images = groups.images(rows)
    for first in range(0, len(rows), CHUNK):
        own = labels[first : first + CHUNK]
        shown = None if view is None else view(items[first : first + CHUNK])
        decoded, kept = decoder.batch((next(images) for _ in own), shown)
        pixels, readable = np.zeros((len(own), *decoder.shape), np.float32), np.zeros(len(own), bool)
        pixels[kept], readable[kept] = decoded.numpy(), True
        yield {"image": pixels, "label": own, "readable": readable}


def _cause(error: Exception) -> Exception:
    """Our own error within Ray's, if there is one."""
    found: BaseException | None = error
    while found is not None:
        inner = getattr(found, "cause", None) or found.__cause__
        if isinstance(found, ConfigError) and not isinstance(inner, ConfigError):
            return ConfigError(str(found).splitlines()[-1])
        found = inner
    return error
