"""The parts of accelerator.py: what each tries on a device, each in a process of its own, and the page about them."""
