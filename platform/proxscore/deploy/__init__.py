"""What starts clusters: files for clouds and for Kubernetes, the recipe of an image, and a check of the former."""
