"""The whole way from a source to a folder of shards, with a summary and a contact sheet, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.config.files import check_folder_destination
from proxscore.storage import replacing_folder
from proxscore.vision.preparation import contact_sheet as sheets
from proxscore.vision.preparation.collected import SPLITS, Collected, Picture
from proxscore.vision.preparation.examining import Duplicates, Seen, duplicates, examine
from proxscore.vision.preparation.pool import in_order, progress
from proxscore.vision.preparation.reading import collect
from proxscore.vision.preparation.shards import QUALITY, Shard, group_rows, schema, write_shard
from proxscore.vision.splits import Rows, split_rows, stratified_order

_LISTED = 1000  # duplicates and unreadable images in the summary, at most of each
_PACKAGES = ("proxscore", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class Plan:
    """How a source is prepared.

    Attributes:
        fractions: of the images, by split (validation, test), to draw; of training images, where the source has splits.
        seed: of the splits and of the order of rows.
        size: pixels that a longer shorter side is resized to; none: images stay as they are.
        rows_per_shard: at most.
        workers: processes.
    """

    fractions: dict[str, float]
    seed: int = 0
    size: int | None = None
    rows_per_shard: int = 5000
    workers: int = 1
    image_column: str = "image"
    label_column: str = "label"
    numbers: bool = False  # labels are numbers, and no classes


def prepare(source: Path, output: Path, plan: Plan) -> dict[str, Any]:
    """Write the shards of a source, ``dataset.json`` and ``contact_sheet.png`` into a new folder.

    Returns:
        What ``dataset.json`` holds.

    Raises:
        ConfigError: the source or a setting is at fault, or ``output`` is there and not empty; nothing is written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"{output}: is {'not empty' if output.is_dir() else 'no folder'}; name a new or an empty folder"
        )
    check_folder_destination("OUTPUT", output)
    collected = collect(source, plan.image_column, plan.label_column, numbers=plan.numbers)
    seen = examine(collected, plan.workers)
    readable = np.array([row for row, each in enumerate(seen) if each.reason is None], dtype=np.int64)
    if collected.values is None:
        _check_classes(collected, readable)
    splits = _splits(collected, seen, readable, plan)
    found = duplicates(seen, splits, collected.targets)
    summary = _summary(source, collected, seen, splits, found, plan)
    with replacing_folder(output) as folder:
        summary["shards"] = _write(folder, collected, seen, splits, summary, plan)
        _sheet(collected, splits).save(folder / "contact_sheet.png")
        (folder / "dataset.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _check_classes(collected: Collected, readable: Rows) -> None:
    if len(collected.classes) < 2:
        raise ConfigError(f"all images are of one class, {collected.classes[0]!r}; expected at least two classes")
    counts = Counter(label for row in readable for label in collected.labels[row])
    for label, name in enumerate(collected.classes):
        if counts[label] == 1 and not collected.multi_label:
            (row,) = (int(row) for row in readable if label in collected.labels[row])
            (picture,) = collected.pictures.part(np.array([row])).read()
            raise ConfigError(
                f"class {name!r} has one image that can be read, {picture.where}; give it two or more, or leave it out"
            )


def _splits(collected: Collected, seen: list[Seen], readable: Rows, plan: Plan) -> dict[str, Rows]:
    """Rows of each split: the source's own, and those that are drawn; in the order in which they are written."""
    splits: dict[str, Rows] = {"train": readable}
    if collected.splits is not None:
        own = np.array(collected.splits)[readable]
        splits = {split: readable[own == split] for split in SPLITS if split in collected.splits}
    for split, fraction in plan.fractions.items():
        if split in splits:
            raise ConfigError(
                f"--{split}-fraction={fraction:g}: the source has a {split} split of its own, of {len(splits[split])} images; "
                "leave the option out"
            )
        if round(fraction * len(splits["train"])) == 0:
            raise ConfigError(
                f"--{split}-fraction={fraction:g} of {len(splits['train'])} images is none; give a larger one"
            )
    for split, rows in splits.items():
        if not len(rows):
            raise ConfigError(f"no image of the {split} split can be read")
    if plan.fractions:
        splits |= _drawn(splits["train"], collected, seen, plan)
    if collected.pictures.any_order:
        splits = {
            split: rows[stratified_order(collected.strata(rows), (plan.seed, 2))] for split, rows in splits.items()
        }
    return {split: splits[split] for split in SPLITS if split in splits}


def _drawn(pool: Rows, collected: Collected, seen: list[Seen], plan: Plan) -> dict[str, Rows]:
    """Splits of some rows: different pictures are drawn, stratified; copies of a picture go where it goes."""
    firsts: dict[str, int] = {}
    for row in pool.tolist():
        firsts.setdefault(seen[row].sha256, row)
    different = np.array(list(firsts.values()), dtype=np.int64)
    split_of = {
        int(different[place]): split
        for split, places in split_rows(collected.strata(different), plan.fractions, seed=plan.seed).items()
        for place in places
    }
    own = np.array([split_of[firsts[seen[row].sha256]] for row in pool.tolist()])
    return {split: pool[own == split] for split in ("train", *plan.fractions)}


def _write(
    folder: Path, collected: Collected, seen: list[Seen], splits: dict[str, Rows], summary: dict[str, Any], plan: Plan
) -> list[dict[str, Any]]:
    keys = ("classes", "counts", "source_sha256", "versions")
    columns = schema(
        collected.classes,
        multi_label=collected.multi_label,
        about={key: summary[key] for key in keys},
        numbers=collected.values is not None,
    )
    targets = collected.targets
    lengths = np.array([each.length for each in seen], dtype=np.int64)
    shards = []
    for split, rows in splits.items():
        parts = np.array_split(rows, -(-len(rows) // plan.rows_per_shard))
        for number, part in enumerate(parts):
            path = folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
            shards.append((path, part))
    tasks = (
        Shard(
            path,
            collected.pictures.part(part),
            [targets[row] for row in part],
            columns,
            group_rows(lengths[part]),
            plan.size,
        )
        for path, part in shards
    )
    with progress(sum(map(len, splits.values())), "writing") as bar:
        for count in in_order(write_shard, tasks, plan.workers):
            bar.update(count)
    return [{"file": path.name, "rows": len(part), "bytes": path.stat().st_size} for path, part in shards]


def _sheet(collected: Collected, splits: dict[str, Rows]) -> Any:
    if collected.values is not None:
        return sheets.contact_sheet(_by_value(collected, collected.values[:, 0], splits["train"]))
    rows: dict[int, list[int]] = {label: [] for label in range(min(len(collected.classes), sheets.CLASSES))}
    counts: Counter[int] = Counter()
    for row in splits["train"].tolist():
        for label in collected.labels[row]:
            counts[label] += 1
            if label in rows and len(rows[label]) < sheets.IMAGES:
                rows[label].append(row)
    shown = [
        (
            f"{collected.classes[label]}\n{counts[label]} to train on",
            collected.pictures.part(np.array(own, dtype=np.int64)).read(),
        )
        for label, own in rows.items()
    ]
    return sheets.contact_sheet([(name, list(pictures)) for name, pictures in shown])


def _by_value(collected: Collected, values: NDArray[np.float32], rows: Rows) -> list[tuple[str, list[Picture]]]:
    """Eighths of some rows by their first number, with the range of each."""
    found = []
    for own in np.array_split(rows[np.argsort(values[rows], kind="stable")], 8):
        if len(own):
            name = f"{collected.classes[0]}\n{values[own[0]]:.4g} to {values[own[-1]]:.4g}"
            found.append((name, list(collected.pictures.part(np.sort(own[: sheets.IMAGES])).read())))
    return found


def _summary(
    source: Path, collected: Collected, seen: list[Seen], splits: dict[str, Rows], found: Duplicates, plan: Plan
) -> dict[str, Any]:
    readable = [each for each in seen if each.reason is None]
    unreadable = [{"image": each.path, "reason": each.reason} for each in seen if each.reason is not None]
    split_of = {int(row): split for split, rows in splits.items() for row in rows}
    names, targets, numbers = collected.classes, collected.targets, collected.values is not None
    groups = [
        [
            {
                "image": seen[row].path,
                "split": split_of[row],
                "labels": list(targets[row]) if numbers else [names[label] for label in collected.labels[row]],
            }
            for row in rows
        ]
        for rows in found.groups[:_LISTED]
    ]
    return {
        "source": str(source),
        "kind": collected.kind,
        "source_sha256": _source_hash(seen, collected),
        "images": len(readable),
        "multi_label": collected.multi_label,
        "numbers": numbers,
        "classes": list(names),
        "counts": {split: _counts(collected, rows) for split, rows in splits.items()},
        "rows": {split: len(rows) for split, rows in splits.items()},
        "image_sizes": _sizes(readable),
        "formats": dict(Counter(each.format for each in readable).most_common()),
        "duplicates": {
            "within_splits": found.within,
            "pictures_in_several_splits": found.across,
            "pictures_with_different_labels": found.conflicting,
            "groups": groups,
        },
        "unreadable": {"count": len(unreadable), "images": unreadable[:_LISTED]},
        "settings": {
            "fractions": plan.fractions,
            "seed": plan.seed,
            "size": plan.size,
            "jpeg_quality": None if plan.size is None else QUALITY,
            "rows_per_shard": plan.rows_per_shard,
        },
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def _counts(collected: Collected, rows: Rows) -> dict[str, Any]:
    """Rows of each class; of numbers, their extremes and medians."""
    if collected.values is not None:
        return {name: _spread(collected.values[rows, place]) for place, name in enumerate(collected.classes)}
    found = Counter(label for row in rows for label in collected.labels[row])
    return {name: found[label] for label, name in enumerate(collected.classes)}


def _sizes(seen: list[Seen]) -> dict[str, Any]:
    """Widths and heights in pixels: extremes, medians, and the most frequent sizes."""
    sizes = np.array([each.size for each in seen])
    common = Counter(f"{width}x{height}" for width, height in sizes.tolist())
    return {
        "width": _spread(sizes[:, 0]),
        "height": _spread(sizes[:, 1]),
        "distinct": len(common),
        "most_frequent": dict(common.most_common(10)),
    }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {"least": values.min().item(), "median": float(np.median(values)), "largest": values.max().item()}


def _source_hash(seen: list[Seen], collected: Collected) -> str:
    """SHA-256 of the hashes and labels of all images, in their order."""
    found = hashlib.sha256()
    for each, told in zip(seen, collected.targets, strict=True):
        labels = told if collected.values is not None else [collected.classes[label] for label in told]
        found.update(f"{each.sha256} {','.join(map(str, labels))}\n".encode())
    return found.hexdigest()
