"""Parquet images on a cluster: Ray Data reads and decodes the very rows that the reader in one process would."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from proxscore.config import ParquetConfig
from proxscore.vision.data import load_images
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import ImageData
from proxscore.vision.sources.parquet import ParquetReader, encoded, image_and_name

if TYPE_CHECKING:
    import ray.data

_CHUNK = 64  # images that leave a task at once: 38 MB of float32 at 3x224x224


def ray_datasets(
    config: ParquetConfig, data: ImageData | None = None, *, num_cpus: float = 1
) -> dict[str, ray.data.Dataset]:
    """``{"train", "validation", "test"}`` as Ray datasets with columns ``image`` (float32 (C, H, W), normalised) and
    ``label`` (int64).

    The rows of each part are those of ``load_images(config)``. A dataset starts from a list of row groups, each with
    its rows of the part; tasks read a row group and decode its images. Shuffling whole blocks therefore shuffles row
    groups; a local shuffle buffer mixes the rows. Every node needs the files under the same path.

    Args:
        config: the Parquet section.
        data: the outcome of ``load_images(config)``, where the caller has it; saves a second scan of the labels.
        num_cpus: CPUs that one reading task takes. Training workers that hold every CPU of the cluster leave none to
            read, and the run waits for ever: fractions help on small machines.

    Raises:
        ConfigError: as ``load_images``. An image that cannot be decoded fails its task with the file and row.
    """
    import ray.data  # here, so that vision works where Ray does not

    data = data or load_images(config)
    datasets = {}
    for part in ("train", "validation", "test"):
        dataset = getattr(data, part)
        reader: ParquetReader = dataset.reader
        groups = ray.data.from_items(reader.row_groups(dataset.rows))
        decode = partial(_decode, decoder=reader.decoder, column=reader.column)
        # One row group per call, whatever the size of blocks, bounds a task's memory.
        datasets[part] = groups.map_batches(decode, batch_size=1, num_cpus=num_cpus)
    return datasets


def _decode(group: dict[str, Any], decoder: Decoder, column: str) -> Iterator[dict[str, Any]]:
    file, start, rows, labels = (group[key][0] for key in ("file", "start", "rows", "labels"))
    images = encoded(pq.ParquetFile(file).read_row_group(int(group["group"][0]), columns=[column]).column(0))
    for first in range(0, len(rows), _CHUNK):
        inside = [int(row) for row in rows[first : first + _CHUNK]]
        batch = decoder.batch([image_and_name(images, row, file, int(start) + row) for row in inside])
        yield {"image": batch.numpy(), "label": np.asarray(labels[first : first + _CHUNK], dtype=np.int64)}
