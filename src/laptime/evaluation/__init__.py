"""The command `laptime evaluate`: accuracy, figures per class and latency of a trained run."""
