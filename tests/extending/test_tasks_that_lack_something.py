"""A task of another package that lacks what training needs is refused in one line that names it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from proxscore.config import ConfigError
from proxscore.inference import Gaussian
from proxscore.tasks import Task


class Rows(TensorDataset):
    def __getitems__(self, rows: list[int]) -> Any:
        return self[rows]


class Whole(Task):
    def __init__(self, **changes: Any) -> None:
        rows = Rows(torch.zeros(3, 2), torch.zeros(3, 1))
        self.config = SimpleNamespace(data=SimpleNamespace(kind="mine", streamed=False))
        self.data = SimpleNamespace(train=rows, validation=rows, test=rows)
        self.likelihood = Gaussian()
        for name, value in changes.items():
            setattr(self, name, value)

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        return nn.Linear(2, 1)


class Unlikely(Whole):
    def __init__(self) -> None:
        super().__init__()
        del self.likelihood


PLAIN = TensorDataset(torch.zeros(3, 2), torch.zeros(3, 1))
STREAMED = SimpleNamespace(data=SimpleNamespace(kind="mine", streamed=True))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Unlikely(), "task Unlikely has no likelihood: set self.likelihood when it is built"),
        (Whole(likelihood=nn.MSELoss()), r"its likelihood MSELoss has no method nll\(outputs, targets\)"),
        (Whole(data=SimpleNamespace(train=PLAIN)), "its train data, TensorDataset, have no method __getitems__"),
        (Whole(data=SimpleNamespace(train=Whole().data.train)), "its data have no part 'validation'"),
        (Whole(config=STREAMED), "its source mine is streamed, and it has no method streamed_rows"),
    ],
)
def test_what_is_missing_is_named(task: Task, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task.check_members()


def test_a_task_with_all_of_it_is_taken_and_its_example_has_the_shapes_of_its_rows() -> None:
    Whole().check_members()
    inputs, targets = Whole().example(5, torch.device("cpu"))
    assert (inputs.shape, targets.shape) == ((5, 2), (5, 1))
