"""Overrides that make runs quick: what a test does not look at is off, and the data are few."""

# Without what takes seconds beside the training. A test of one of these adds it back: the last override counts.
QUICK = (
    "logger=none",
    "measure.breakdown=false",
    "measure.peak=false",
    "strategy.threads_per_rank=1",
    "callbacks.progress_bar=null",
)

# A network of a few hundred weights on 240 images of 8 x 8: an epoch takes milliseconds.
TINY = (
    *QUICK,
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=300",
    "dataset.num_test=60",
    "model.hidden_sizes=[16]",
    "training.batch_size=32",
)

# A sweep without its report: tables and eight plots take two seconds.
NO_REPORT = "~hydra.callbacks.report"
