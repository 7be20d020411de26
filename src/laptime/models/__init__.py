"""Networks, one per file. Each takes the data set's shape and class count and maps images to logits."""
