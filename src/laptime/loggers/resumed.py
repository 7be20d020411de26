"""Prepares Lightning's file loggers for a resumed training, so that their files hold every epoch once."""

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
    """Make a logger keep its data of earlier epochs, and drop this and later epochs, which are trained again.

    Args:
        logger: a new logger that has not written yet.
        epoch: the first epoch to be trained, from 0.
    """
    if isinstance(logger, TensorBoardLogger):
        _wait_for_new_file_name(Path(logger.log_dir))
        # An argument of SummaryWriter, whose step is the epoch. Lightning 2.6 only takes it when the logger is created:
        # not reported.
        logger._kwargs.setdefault("purge_step", epoch)
    elif isinstance(logger, CSVLogger):
        with suppress(OSError):  # raised again when the logger writes, and reported there
            logger._experiment = _ResumedCSV(logger.log_dir, epoch)


def _wait_for_new_file_name(folder: Path) -> None:
    """Wait until a new event file sorts after the existing ones: TensorBoard reads them in the order of their names,
    which start with the second in which they were opened."""
    matches = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.out.tfevents.*")]
    seconds = {int(match[1]) for match in matches if match}
    while int(time.time()) in seconds:
        time.sleep(0.01)


class _ResumedCSV(ExperimentWriter):
    """Appends to metrics.csv. The writer of Lightning 2.6 deletes the file when it starts, by design:
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
        """Don't delete the file, as Lightning's method does."""


def _is_before(row: dict[str, str | None], epoch: int) -> bool:
    """Whether a row is complete and belongs to an earlier epoch. A killed process may leave an incomplete last row."""
    try:
        return None not in row.values() and int(row["step"] or "") < epoch
    except (KeyError, ValueError):
        return False
