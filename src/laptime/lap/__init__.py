"""Clocks and counts of one epoch, and the rows that come of them. Knows no images and no configuration."""
