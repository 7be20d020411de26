"""Laptime in other people's trainings: a callback for Lightning, one for Hugging Face's Trainer, and plain loops.

It changes nothing of a training and never makes one fail: what can't be measured is null, with one warning.
"""
