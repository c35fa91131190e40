"""Image classification: the settings of the task, and what they build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from proxscore.config import IMAGE_SOURCES, Section, TaskSection
from proxscore.vision.class_names import check_class_names
from proxscore.vision.sources.base import ImageSource

if TYPE_CHECKING:
    from proxscore.vision.image_task import ImageTask

#: Settings of the data that say how an image becomes a network's input.
PREPARATION = ("mean", "std", "interpolation", "crop", "size", "channels")


class ModelConfig(Section):
    """A network by its timm name. ``kwargs`` go to ``timm.create_model`` as they are."""

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = Field({})
    weights: Path | None = None  # a state dict (.safetensors or .pt) to start from; also the mean of the prior
    channels_last: bool = (
        False  # memory format of the images: faster for some convolutional networks, slower for others
    )


class VisionConfig(TaskSection):
    """Image classification with a timm model."""

    kind: Literal["vision"] = "vision"
    model: ModelConfig = ModelConfig()
    data: Annotated[ImageSource, IMAGE_SOURCES] = Field(default_factory=IMAGE_SOURCES.make)
    likelihood: Literal["categorical", "bernoulli"] = "categorical"  # bernoulli: two classes from one logit

    @property
    def weights(self) -> Path | None:
        return self.model.weights

    @property
    def starts_from_weights(self) -> bool:
        kwargs = self.model.kwargs
        return self.weights is not None or bool(kwargs.get("pretrained") or kwargs.get("checkpoint_path"))

    @classmethod
    def described_model(cls, model: Mapping[str, Any], where: str) -> dict[str, Any]:
        from proxscore.vision.architecture import described  # timm takes seconds

        return described(model, where)

    @classmethod
    def prepared_as(cls, data: Mapping[str, Any], kind: str) -> dict[str, Any]:
        if kind not in IMAGE_SOURCES.kinds():
            return {}
        fields = IMAGE_SOURCES.section(kind).model_fields
        return {key: data[key] for key in PREPARATION if key in data and key in fields}

    def build(self, *, verify: bool = True, trained: Mapping[str, Any] | None = None) -> ImageTask:
        from proxscore.vision.image_task import ImageTask  # timm takes seconds

        task = ImageTask(self, verify=verify)
        if isinstance(trained, Mapping):
            check_class_names(task.data.classes, trained)
        return task
