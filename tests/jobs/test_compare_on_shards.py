"""A comparison whose cells share their network among two workers is the comparison of cells in one process each."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from conftest import script

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
METHODS: dict[str, Any] = {
    "ours": {"method": {"kind": "proximal_score"}},
    "Laplace": {"method": {"kind": "laplace"}},  # cannot share its state: one process here, too
    "two": {"method": {"kind": "ensemble", "members": 2, "budget": "shared"}},  # of AdamW
}


def comparison(folder: Path, name: str, **training: Any) -> list[str]:
    tree = {
        "name": name,
        "budget": 3,
        "seeds": [0],
        "base": {
            "task": {
                "model": {"name": "vit_tiny_patch16_224", "kwargs": VIT},
                "data": {"kind": "digits", "limit": 200},
            },
            "training": {"device": "cpu", "batch_size": 50} | training,
            "evaluation": {"draws": 4, "temperature_scaling": True},
        },
        "methods": METHODS,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return ["--config", str(folder / f"{name}.yaml"), f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]


@pytest.mark.slow
def test_a_vision_transformer_on_two_workers_per_cell(
    ray_local: None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare: Main = script(repository, "compare")
    monkeypatch.chdir(tmp_path)
    assert compare(comparison(tmp_path, "alone")) == 0
    assert compare(comparison(tmp_path, "shared", workers=2)) == 0
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in ("alone", "shared"):
        folder = tmp_path / "runs" / name
        found[name] = {path.parts[-4]: json.loads(path.read_text()) for path in folder.glob("*/default/0/cell.json")}
        assert {record["status"] for record in found[name].values()} == {"finished"}
    assert {method: record["workers"] for method, record in found["shared"].items()} == {
        "ours": 2,
        "laplace": 1,
        "two": 2,
    }
    for method, one in found["alone"].items():
        two = found["shared"][method]
        assert two["gradient_evaluations"] == one["gradient_evaluations"]
        for metric, value in one["metrics"].items():  # sums in another order: 12 steps
            assert two["metrics"][metric] == pytest.approx(value, rel=2e-2, abs=2e-3), (method, metric)
        kept = [
            np.load(tmp_path / "runs" / name / method / "default" / "0" / "predictions.npz")
            for name in ("alone", "shared")
        ]
        assert sorted(kept[0]["targets"]) == sorted(kept[1]["targets"])  # every row of the test split, once
        assert not list((tmp_path / "runs" / "shared" / method / "default" / "0").glob("checkpoint*"))
    rows = list(csv.DictReader((tmp_path / "runs" / "shared" / "report" / "comparison.csv").open()))
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert (tmp_path / "runs" / "shared" / "report" / "comparison.png").exists()
    assert compare(comparison(tmp_path, "shared", workers=2)) == 0  # it is finished: nothing is trained again
