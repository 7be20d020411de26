"""python -m laptime.doctor: whether this machine is fit to measure on. Trains a few steps, times a few seconds, and
writes nothing to the disk."""
