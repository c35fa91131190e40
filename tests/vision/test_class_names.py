"""A posterior is scored on data of the classes that it was trained on, in their order, or not at all."""

from __future__ import annotations

import logging

import pytest

from proxscore.config import ConfigError
from proxscore.vision.class_names import check_class_names
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.task import ModelConfig, VisionConfig

PETS = ("cat", "dog", "hamster")


def trained(*names: str) -> dict[str, object]:
    return {"class_names": list(names), "classes": len(names)}


@pytest.mark.parametrize(
    ("names", "old", "message"),
    [
        (("cat", "dog"), trained(*PETS), "other classes than the posterior was trained on: missing 'hamster'"),
        ((*PETS, "newt"), trained(*PETS), "other classes than the posterior was trained on: extra 'newt'"),
        (("cat", "dog", "newt"), trained(*PETS), "missing 'hamster'; extra 'newt'"),
        (("dog", "cat", "hamster"), trained(*PETS), "same names in another order: class 0 is 'dog' here and was 'cat'"),
        (PETS, {"classes": 4}, "task.data has 3 classes; the posterior was trained on 4"),
        (("0", "1"), trained(*PETS), "task.data has 2 classes; the posterior was trained on 3"),
        (tuple("abcdefgh"), trained(*PETS), "extra 'a', 'b', 'c', 'd', 'e' and 3 more"),
    ],
)
def test_other_classes_are_refused_in_a_line_that_names_them(
    names: tuple[str, ...], old: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_class_names(names, old)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "old", "warning"),
    [
        (PETS, trained(*PETS), None),
        (("0", "1", "2"), trained("0", "1", "2"), None),
        (PETS, {"classes": 3}, "the posterior does not say what its 3 classes are named"),
        (("0", "1", "2"), trained(*PETS), "the classes of task.data are numbers without names"),
        (PETS, trained("0", "1", "2"), "the posterior's classes are numbers without names"),
    ],
)
def test_what_cannot_be_compared_is_a_warning(
    names: tuple[str, ...], old: dict[str, object], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_class_names(names, old)
    assert [warning in record.getMessage() for record in caplog.records if warning] == ([True] if warning else [])
    assert bool(caplog.records) == (warning is not None)


def test_a_task_describes_its_classes_and_compares_those_of_a_trained_network() -> None:
    config = VisionConfig(model=ModelConfig(name="small_cnn"), data=DigitsConfig())
    described = config.build().describe()
    assert described["class_names"] == list("0123456789")
    assert described["classes"] == 10
    config.build(trained=described)
    with pytest.raises(ConfigError, match=r"task\.data has 10 classes; the posterior was trained on 9"):
        config.build(trained={"classes": 9})
