"""Finds a batch size that fits into memory, or a learning rate to start from, by trying several."""
