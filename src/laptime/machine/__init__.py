"""What the computer is and does: hardware, counters, memory, devices, environment, energy."""
