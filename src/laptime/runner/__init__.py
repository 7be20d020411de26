"""One run, from its configuration to run.json: its ranks, their processes, the training, the record."""
