"""Networks, one per file: each takes the data set's shape and class count, and maps images to logits. Shared: parts."""
