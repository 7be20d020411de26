"""A Hydra callback that analyzes every sweep at its end, with any launcher."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from laptime.record.files import TENSORBOARD_DIR


class SweepReport(Callback):
    """Prints the tables of a sweep and writes its summary/."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        report_sweep(Path(config.hydra.sweep.dir))


def report_sweep(sweep_dir: Path) -> None:
    """Analyze a sweep, complete or not. An error is printed and not raised."""
    from rich.console import Console

    from laptime.analysis.analyze import analyze
    from laptime.analysis.report import print_analysis
    from laptime.analysis.write import write_reports, write_tables
    from laptime.errors import ignore_broken_pipe
    from laptime.terminal import relative

    try:
        analysis = analyze([sweep_dir])
        if not analysis.runs:
            return
        with ignore_broken_pipe():
            print_analysis(analysis, Console())
        write_tables(analysis, sweep_dir / "summary")
        write_reports(analysis, sweep_dir / "summary")
        with ignore_broken_pipe():
            print(f"\nReport       {relative(sweep_dir / 'summary' / 'report.html')}")
            if any((run.path / TENSORBOARD_DIR).is_dir() for run in analysis.runs):
                print(f"TensorBoard  tensorboard --logdir {relative(sweep_dir)}")
    except Exception as error:  # the runs are done; python -m laptime.analysis shows the traceback
        print(f"error: the report of the sweep can't be written: {type(error).__name__}: {error}", file=sys.stderr)
