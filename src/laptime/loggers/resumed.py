"""What Lightning's loggers that write files do where training goes on from a checkpoint: each epoch stays, once."""

import csv
import io
import re
import time
from contextlib import suppress
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from laptime.record.files import write_atomically


def resume_at(logger: Logger, epoch: int) -> None:
    """Let a logger keep what it has of the epochs before this one, and drop the later ones: they are trained again.

    Args:
        logger: as built, before it has written anything.
        epoch: the first that will be trained, from 0.
    """
    if isinstance(logger, TensorBoardLogger):
        _wait_for_a_later_name(Path(logger.log_dir))
        # SummaryWriter's; its step is the epoch. Lightning 2.6 takes it when the logger is made; not reported upstream.
        logger._kwargs.setdefault("purge_step", epoch)
    elif isinstance(logger, CSVLogger):
        with suppress(OSError):  # comes again where the logger writes, and is reported there
            logger._experiment = _ResumedCSV(logger.log_dir, epoch)


def _wait_for_a_later_name(folder: Path) -> None:
    """Until a new event file stands behind those that are there: TensorBoard reads them in the order of their names,
    which begin with the second in which they were opened."""
    named = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.out.tfevents.*")]
    seconds = {int(each[1]) for each in named if each}
    while int(time.time()) in seconds:
        time.sleep(0.01)


class _ResumedCSV(ExperimentWriter):
    """Appends to metrics.csv, which the writer of Lightning 2.6 deletes when it starts, by design:
    https://github.com/Lightning-AI/pytorch-lightning/pull/19446
    """

    def __init__(self, log_dir: str, epoch: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            self.metrics_keys = list(reader.fieldnames or [])
            rows = [row for row in reader if _is_before(row, epoch)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if self.metrics_keys:
            writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes the file."""


def _is_before(row: dict[str, str | None], epoch: int) -> bool:
    """Whether a row is of an earlier epoch, and whole: a process that is killed while it writes tears its last one."""
    try:
        return None not in row.values() and int(row["step"] or "") < epoch
    except (KeyError, ValueError):
        return False
