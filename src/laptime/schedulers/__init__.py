"""Learning rate schedules by optimizer steps, one per file; those by epochs are torch's."""
