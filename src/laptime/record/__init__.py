"""What a run directory holds: its files, the newest run, the heartbeat, masked secrets. No torch, no configuration."""

from laptime.record.files import read_epochs, read_record
from laptime.record.run_record import RunRecord

__all__ = ["RunRecord", "read_epochs", "read_record"]
