"""Image classification: the settings of the task, and what they build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from proxscore.config import IMAGE_SOURCES, Section, TaskSection
from proxscore.vision.augmentation import AugmentationConfig
from proxscore.vision.class_names import check_class_names
from proxscore.vision.lora import LoRAConfig
from proxscore.vision.sources.base import ImageSource

if TYPE_CHECKING:
    from proxscore.vision.image_task import ImageTask

#: Settings of the data that say how an image becomes a network's input.
PREPARATION = ("mean", "std", "interpolation", "crop", "size", "channels")


class ModelConfig(Section):
    """A network by its timm name. ``kwargs`` go to ``timm.create_model`` as they are."""

    name: str = "vit_tiny_patch16_224"  # timm's, or small_cnn
    kwargs: dict[str, Any] = Field({})  # go to timm.create_model as they are
    pretrained: bool = (
        False  # start from timm's weights of that name, from the hub or its cache; also the mean of the prior
    )
    # Start from these instead: a state dict (.safetensors, .pt), a folder with one or with a posterior, or MLflow's
    # models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH. They are fitted to classes, channels and size as timm does it.
    weights: Path | None = None
    zero_head: bool = False  # the classifier starts with zeros, so that all classes are equally probable
    frozen: list[str] = Field(
        []
    )  # names of layers, or glob patterns of parameters, that stay; body: all but the classifier
    lora: LoRAConfig | None = None  # train adapters and the classifier alone
    channels_last: bool = (
        False  # memory format of the images: faster for some convolutional networks, slower for others
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        for key in ("pretrained", "checkpoint_path"):
            if self.kwargs.get(key):
                right = "pretrained=true" if key == "pretrained" else "weights=FILE"
                raise ValueError(f"kwargs.{key} is not taken: use task.model.{right}")
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights both say where the network starts: choose one")
        if self.lora is not None and self.frozen:
            raise ValueError("lora freezes everything but adapters and classifier itself: leave frozen out")
        return self


class VisionConfig(TaskSection):
    """Image classification with a timm model."""

    kind: Literal["vision"] = "vision"
    model: ModelConfig = ModelConfig()
    data: Annotated[ImageSource, IMAGE_SOURCES] = Field(default_factory=IMAGE_SOURCES.make)
    augmentation: AugmentationConfig = AugmentationConfig()
    # bernoulli: two classes from one logit; multi_label: any of several labels; gaussian: numbers, with a noise of their own.
    likelihood: Literal["categorical", "bernoulli", "multi_label", "gaussian"] = "categorical"
    # Each label counts as one drawn from all classes with this probability; predictions are evaluated on the labels as they are.
    label_smoothing: float = Field(0, ge=0, lt=1)
    # What a training row of each class counts, as if it were so many rows; balanced: classes count the same together.
    class_weights: Literal["none", "balanced"] | list[Annotated[float, Field(gt=0)]] = "none"

    @model_validator(mode="before")
    @classmethod
    def _no_mixed_rows(cls, values: Any) -> Any:
        for key in ("mixup", "cutmix"):
            if isinstance(values, dict) and key in values:
                raise ValueError(
                    f"{key} is not taken: mixed images depend on each other and are no rows that were observed, so that their "
                    "number, and with it the width of the posterior, would be arbitrary: use task.augmentation or label_smoothing"
                )
        return values

    @model_validator(mode="after")
    def _of_the_likelihood(self) -> Self:
        if self.likelihood != "categorical" and (self.label_smoothing or self.class_weights != "none"):
            raise ValueError("label_smoothing and class_weights are of likelihood=categorical: leave them out")
        return self

    @property
    def weights(self) -> Path | None:
        return self.model.weights

    @property
    def starts_from_weights(self) -> bool:
        return self.weights is not None or self.model.pretrained

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

    def example_input(self, description: Mapping[str, Any], where: str) -> tuple[str, Any]:
        from proxscore.vision.predictor import ImagePredictor, example

        return ImagePredictor.takes, example(description, self, where)

    def predictor(self, posterior: Any, config: Any, folder: Path, device: Any) -> Any:
        from proxscore.vision.predictor import ImagePredictor  # timm takes seconds

        return ImagePredictor(posterior, config, folder, device)

    def build(self, *, verify: bool = True, trained: Mapping[str, Any] | None = None) -> ImageTask:
        from proxscore.vision.image_task import ImageTask  # timm takes seconds

        task = ImageTask(self, verify=verify, trained=trained)
        if isinstance(trained, Mapping):
            check_class_names(task.data.classes, trained)
        return task
