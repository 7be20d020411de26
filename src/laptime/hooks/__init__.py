"""Timers for trainings that Laptime does not run: callbacks for Lightning and Hugging Face's Trainer, and plain loops.

A timer changes nothing in the training and never makes it fail. A figure it can't measure is null, with one warning.
"""
