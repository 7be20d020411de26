"""Overrides for short runs: little data, and everything off that a test doesn't need."""

# Switches off what takes seconds in addition to the training. Tests of these switch them on: the last override counts.
QUICK = (
    "logger=none",
    "measure.breakdown=false",
    "measure.peak=false",
    "strategy.threads_per_rank=1",
    "callbacks.progress_bar=null",
)

# A network with a few hundred weights on 240 images of 8 x 8. An epoch takes milliseconds.
TINY = (
    *QUICK,
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=300",
    "dataset.num_test=60",
    "model.hidden_sizes=[16]",
    "training.batch_size=32",
)

# A sweep without its report, whose tables and plots take two seconds.
NO_REPORT = "~hydra.callbacks.report"
