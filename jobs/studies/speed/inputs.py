"""How fast rows come, beside what a step takes of them: from folders and Parquet, in the process and through Ray Data.

Photographs of 640 x 480 pixels (crops of scikit-learn's two) are trained on as a user would, by ``proxscore train`` with its
defaults: once from a folder, once from the table that ``proxscore prepare-data --size 256`` makes, and once from that table
with two workers, to whom Ray Data streams it. ``decoding`` times the decoder alone, with JPEGs at full and at reduced scale.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from proxscore.commands import prepare_data, train
from proxscore.vision import decoding
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import Normalisation

SIZE = 224
NETWORK = "resnet18"


def photographs(count: int, shape: tuple[int, int] = (480, 640), seed: int = 0) -> list[bytes]:
    """So many JPEGs, crops of two photographs that were enlarged."""
    generator = np.random.default_rng(seed)
    whole = [Image.fromarray(image).resize((1280, 854)) for image in load_sample_images().images]
    found = []
    for index in range(count):
        left, top = int(generator.integers(0, 1281 - shape[1])), int(generator.integers(0, 855 - shape[0]))
        crop = whole[index % 2].crop((left, top, left + shape[1], top + shape[0]))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def decoding_rows(repeats: int) -> list[dict[str, Any]]:
    """Images per second of the decoder, by the pixels of the photograph: at full scale, and as it decides."""
    table = []
    decoder = Decoder(SIZE, 3, Normalisation.of(None, None, 3), crop=0.95)
    for shape in ((480, 640), (1200, 1600)):
        images = photographs(4, (min(shape[0], 854), min(shape[1], 1280)))
        if shape[0] > 854:
            images = [_enlarged(image, shape) for image in images]
        rates: dict[str, list[float]] = {"full": [], "reduced": []}
        for _ in range(repeats):
            for kind, spare in (("full", 10**6), ("reduced", decoding.SPARE)):
                before, decoding.SPARE = decoding.SPARE, spare
                started = time.perf_counter()
                for image in images:
                    decoder.pixels(image, "photograph")
                rates[kind].append(len(images) / (time.perf_counter() - started))
                decoding.SPARE = before
        full, reduced = (statistics.median(rates[kind]) for kind in ("full", "reduced"))
        what = f"decoding {shape[1]} x {shape[0]} for {SIZE}"
        note = f"{reduced / full:.1f} x full scale ({full:.0f})"
        table.append({"what": what, "rows/s": f"{reduced:.0f}", "of the step's time, waiting": "-", "note": note})
    return table


def _enlarged(image: bytes, shape: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((shape[1], shape[0])).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def training_rows(folder: Path, images: int) -> list[dict[str, Any]]:
    """Rows per second of training, and what of it is waiting, as the run's record in MLflow has it."""
    photos = folder / "photos"
    for index, image in enumerate(photographs(images)):
        place = photos / ("china", "flower")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.jpg").write_bytes(image)
    if prepare_data.main([str(photos), str(folder / "table"), "--size", "256"]):
        raise RuntimeError("the table could not be prepared")
    table = []
    sources = {
        "folder, one process": ("image_folder", photos, 0),
        "Parquet, one process": ("parquet", folder / "table", 0),
        "Parquet through Ray Data, two workers": ("parquet", folder / "table", 2),
    }
    for name, (kind, path, workers) in sources.items():
        run = name.replace(" ", "-").replace(",", "")
        settings = [f"name={run}", f"task.data.kind={kind}", f"task.data.path={path}", f"task.data.size={SIZE}"]
        settings += [f"task.model.name={NETWORK}", f"training.workers={workers}", "training.epochs=2", "baseline=null"]
        settings += [
            "training.batch_size=16",
            f"training.cpus_per_worker={0.5 if workers else 1}",
            "evaluation.draws=1",
            "evaluation.validation_draws=1",
            "tracking.interval=0",
        ]
        settings += [f"training.storage={folder / 'runs'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
        config = folder / f"{run}.yaml"
        config.write_text("task: {kind: vision}\nmethod: {kind: proximal_score}\n")
        if train.main(["--config", str(config), *settings]):
            raise RuntimeError(f"{name}: training failed")
        client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        experiments = [one.experiment_id for one in client.search_experiments()]
        (found,) = [one for one in client.search_runs(experiments) if run in (one.info.run_name or "")]

        def medians(key: str, client: Any = client, run_id: str = found.info.run_id) -> float:
            values = [point.value for point in client.get_metric_history(run_id, key)][2:]
            return statistics.median(values) if values else 0.0

        parts = {part: medians(f"time/{part}") for part in ("data", "forward_backward", "update")}
        share = parts["data"] / sum(parts.values())
        rate = f"{medians('train/rows_per_second'):.1f}"
        step = f"step of 16: {1e3 * (parts['forward_backward'] + parts['update']):.0f} ms, {NETWORK} at {SIZE}"
        table.append(
            {"what": name, "rows/s": rate, "of the step's time, waiting": f"{100 * share:.1f} %", "note": step}
        )
    return table


def rows(quick: bool) -> list[dict[str, Any]]:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        return decoding_rows(3 if quick else 15) + training_rows(Path(folder), 60 if quick else 240)


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(" | ".join(map(str, row.values())))
