"""The command `laptime doctor`: checks whether a machine is fit for measurements. It writes no files."""
