"""The command `laptime watch`: shows the status of a sweep or a run while it runs."""
