"""Many runs: their jobs, their launchers, a dry run, resuming, repeats."""
