"""The parts of accelerator.py, each of which tests one matter in its own process, and the page of their results."""
