"""The computer: its hardware, counters, memory, devices, environment and energy."""
