"""Run directories: their files, the newest run, the heartbeat, masked secrets. Loads no torch and no configuration."""

from laptime.record.files import read_epochs, read_record
from laptime.record.run_record import RunRecord

__all__ = ["RunRecord", "read_epochs", "read_record"]
