"""Optimizers that torch lacks, one per file."""
