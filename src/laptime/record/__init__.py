"""What a run directory holds: its files, the newest run, the heartbeat, masked secrets. No torch, no configuration."""
