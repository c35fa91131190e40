"""Image data by configuration: find the source, split it by seed, record how.

A new source is one file under ``sources`` with its section, whose ``load`` gives a ``Source``, and one line in
:mod:`proxscore.config.components`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from proxscore.vision.images import Batch, ImageData, ImageDataset, Source, collate
from proxscore.vision.sources.base import ImageSource
from proxscore.vision.splits import Rows, draw_rows, fingerprint, split_rows

__all__ = ["Batch", "ImageData", "ImageDataset", "collate", "load_images"]


def load_images(config: ImageSource, *, verify: bool = True) -> ImageData:
    """Open a source of images and split its rows.

    Test and validation rows are the data set's own where it brings them (IDX ``t10k``, folders, files named by split);
    otherwise ``test_fraction`` and ``validation_fraction`` of the training pool's rows, drawn by ``split_seed`` and
    stratified by class. ``limit`` then draws that many of the remaining training rows.

    Args:
        config: the section of the source.
        verify: open every image file once. A process that follows one which has done so may leave it out.

    Raises:
        ConfigError: a path, file, label or image at fault, or a split that would be empty; one line names it.
    """
    source = config.load()
    if verify:
        for reader in source.pools.values():
            reader.verify()
    rows, drawn = _split(source, config)
    datasets = {
        part: ImageDataset(source.pools.get(part, source.pools["train"]), rows[part])
        for part in ("train", "validation", "test")
    }
    splits: dict[str, Any] = {
        "seed": config.split_seed,
        "stratified": source.targets == "classes",
        "fractions": drawn,
        "limit": config.limit,
        "counts": {part: len(dataset) for part, dataset in datasets.items()},
        "sha256": {part: fingerprint(rows[part]) for part in datasets},
    }
    return ImageData(**datasets, classes=source.classes, shape=source.shape, splits=splits, targets=source.targets)


def _split(source: Source, config: ImageSource) -> tuple[dict[str, Rows], dict[str, float]]:
    """Rows of each part, and the fractions of those parts that were drawn from the training pool."""
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    drawn = {part: fraction for part, fraction in fractions.items() if part not in source.pools}
    labels = source.pools["train"].labels
    if source.targets != "classes":  # there are no classes to spread evenly
        labels = np.zeros(len(labels), dtype=np.int64)
    rows = split_rows(labels, drawn, seed=config.split_seed)
    for part in fractions.keys() - drawn.keys():
        rows[part] = np.arange(len(source.pools[part].labels), dtype=np.int64)
    if config.limit is not None:
        rows["train"] = draw_rows(rows["train"], labels[rows["train"]], config.limit, seed=config.split_seed)
    return rows, drawn
