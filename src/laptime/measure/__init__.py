"""Measurements outside of the epochs: phases of a step, peak of the device, memory, bare loop, latency."""
