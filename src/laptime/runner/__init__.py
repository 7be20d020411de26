"""One run, from its configuration to run.json: it starts the rank processes, trains, measures and writes the record."""
