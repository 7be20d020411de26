"""Run directories: their files, the newest run, the heartbeat, masked secrets. Imports no torch, no configuration."""

from laptime.record.files import read_epochs, read_record
from laptime.record.run_record import RunRecord

__all__ = ["RunRecord", "read_epochs", "read_record"]
