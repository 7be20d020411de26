"""Networks, one per file. Each takes the image shape and the number of classes, and maps images to logits."""
