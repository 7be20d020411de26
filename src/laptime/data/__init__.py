"""Data sets, one per file, and the two pipelines that make batches of them."""
