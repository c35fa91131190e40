"""A plain convolutional network for small images, registered with timm as ``small_cnn``.

Two convolutions, two linear layers, ReLU and max-pooling; no batch normalisation, whose running statistics belong to no
single draw of the weights; dropout before the linear layers, if a rate is given. On 1x28x28 images with 10 classes it has
80,602 parameters.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ["SmallCNN"]

default_cfgs = generate_default_cfgs(
    {
        "small_cnn.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (1, 28, 28),
            "mean": (0.5,),
            "std": (0.5,),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "conv1",
            "classifier": "head",
            "fixed_input_size": True,
        }
    }
)


class SmallCNN(nn.Module):
    """conv3x3 - ReLU - pool - conv3x3 - ReLU - pool - linear - ReLU - linear.

    With ``w = width`` and images of H x W pixels the layers map ``in_chans -> w -> 2w`` channels at H x W, H/2 x W/2,
    and then ``2w * (H // 4) * (W // 4) -> hidden -> num_classes`` features.

    Args:
        num_classes: length of the logits; 0 leaves out the last layer, as timm models do.
        in_chans: channels of the images.
        img_size: height and width in pixels, at least 4; one number for square images.
        width: channels after the first convolution.
        hidden: features before the last layer.
        drop_rate: of the dropout before each linear layer.

    Raises:
        ValueError: ``img_size`` is below 4 in one direction, so that nothing is left after pooling.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 28,
        width: int = 16,
        hidden: int = 48,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, columns = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, columns) < 4:
            raise ValueError(f"img_size is {height}x{columns}; small_cnn needs at least 4x4 pixels")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = hidden
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()
        self.flat_drop, self.head_drop = nn.Dropout(drop_rate), nn.Dropout(drop_rate)
        self.fc = nn.Linear(2 * width * (height // 4) * (columns // 4), hidden)
        self.head = _classifier(hidden, num_classes)

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's convention."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; ``global_pool`` is timm's argument and must be left out, since nothing is pooled."""
        if global_pool:
            raise ValueError(f"global_pool is {global_pool!r}; small_cnn has no global pooling")
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to feature maps (B, 2 width, H // 4, W // 4)."""
        x = self.pool(self.act(self.conv1(x)))
        return self.pool(self.act(self.conv2(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits (B, num_classes), or to the ``hidden`` features before them."""
        x = self.head_drop(self.act(self.fc(self.flat_drop(x.flatten(1)))))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


@register_model
def small_cnn(pretrained: bool = False, **kwargs: Any) -> SmallCNN:
    """The network above under its timm name; there are no pretrained weights."""
    return build_model_with_cfg(SmallCNN, "small_cnn", pretrained, **kwargs)
