"""What a rank is, how ranks are found (torchrun, SLURM) and how they talk."""
