"""Image classification: timm models by name, image data sets with recorded splits, and the task that joins them."""
