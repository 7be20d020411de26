"""Shared by the tests: start commands and wait for them, overrides for short runs, and readers of what runs write."""
