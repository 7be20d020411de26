"""Measurements apart from the epochs: phases of a step, peak of the device, memory, bare loop, latency."""
