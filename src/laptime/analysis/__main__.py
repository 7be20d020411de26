"""The command `laptime analyze`: tables, plots and reports from any run or sweep directories."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from laptime import starting
from laptime.command_line import Parser, run_command
from laptime.errors import UserError, exit_code_of, ignore_broken_pipe
from laptime.record.latest import newest_sweeps
from laptime.record.walk import require_folders

_ABOUT = """\
Compares runs: speedup, scaling efficiency, where the time goes, and differences
between settings, with confidence intervals over the seeds. Prints tables, and
writes report.html, report.md, summary.json and CSV files."""
_EXAMPLES = {
    "latest": "the newest sweep",
    "run_a run_b --baseline device=cpu": "",
    "latest --gate old/summary.json": "has it become slower?",
}
_TOLERANCE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if the gate failed, 2 for a mistake in the arguments or a missing baseline."""
    from laptime.terminal import replace_unencodable

    replace_unencodable()
    return exit_code_of(lambda: _run(make_parser().parse_args(arguments)))


def _run(args: argparse.Namespace) -> int:
    starting.hand_over()
    if args.target_accuracy is not None and not 0 < args.target_accuracy <= 1:
        raise UserError(f"--target-accuracy {args.target_accuracy}: must be a fraction above 0 and at most 1.")
    if args.target_score is not None and not math.isfinite(args.target_score):
        raise UserError(f"--target-score {args.target_score}: must be a finite number.")
    if args.target_score is not None and args.target_accuracy is not None:
        raise UserError(
            f"--target-score {args.target_score}: can't be combined with --target-accuracy. Use one of them."
        )
    tolerance = _TOLERANCE if args.tolerance is None else args.tolerance
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance}: must be a fraction in [0, 1).")
    if args.gate is None and args.tolerance is not None:
        raise UserError(f"--tolerance {tolerance}: only works with --gate. Add --gate FILE, or remove --tolerance.")
    folders = [latest_sweep() if folder == "latest" else Path(folder) for folder in args.folders]
    require_folders(folders)

    # These load pandas and SciPy.
    from rich.console import Console

    from laptime.analysis.analyze import analyze
    from laptime.analysis.answer import problems
    from laptime.analysis.gate import Verdict, check
    from laptime.analysis.report import print_analysis
    from laptime.analysis.scaling import parse_world_sizes
    from laptime.analysis.wording import check_words
    from laptime.analysis.write import write_reports, write_tables

    analysis = analyze(
        folders, args.baseline, args.by, args.target_accuracy, parse_world_sizes(args.project), args.target_score
    )
    out = Path(args.out) if args.out else _default_output_dir(folders)
    if args.gate is not None and Path(args.gate).resolve() == (out / "summary.json").resolve():
        raise UserError(f"--gate {args.gate}: would be overwritten. Copy it, or write elsewhere with --out.")
    console = Console()
    with ignore_broken_pipe():
        print_analysis(analysis, console)
    if not analysis.runs:
        raise UserError(f"no completed run in or below {', '.join(map(str, folders))}.")
    checks = check(analysis, Path(args.gate), tolerance) if args.gate is not None else []
    write_tables(analysis, out)
    write_reports(analysis, out, with_plots=not args.no_plots)
    with ignore_broken_pipe():
        console.print(f"\nReport       {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
        for result in checks:
            print(check_words(result))
    missing = problems(analysis)
    for problem in missing:
        print(f"error: {problem}", file=sys.stderr)
    if any(result.verdict is not Verdict.OK for result in checks):
        return 1
    return UserError.exit_code if missing else 0


def make_parser() -> Parser:
    parser = Parser("analyze", _ABOUT, _EXAMPLES)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run or sweep directories; latest: the newest sweep")
    parser.add_argument("--baseline", metavar="KEY=VALUE", help="setting to compare with, e.g. device=cpu")
    parser.add_argument(
        "--by", action="append", default=[], metavar="KEY", help="compare runs that differ only in this key"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="directory of the report (default: DIR/summary, or ./summary for several DIRs)"
    )
    parser.add_argument(
        "--no-plots", action="store_true", help="draw no plots, which is faster; plots of an earlier report are removed"
    )
    parser.add_argument(
        "--target-accuracy", type=float, metavar="FRACTION", help="report the time to reach this accuracy, e.g. 0.95"
    )
    parser.add_argument(
        "--target-score", type=float, metavar="VALUE", help="the same for the score of any task, e.g. 1.9 bits/char"
    )
    parser.add_argument(
        "--project", default="8,16", metavar="N,N", help="predict the scaling to these numbers of ranks (default: 8,16)"
    )
    parser.add_argument(
        "--gate",
        metavar="SUMMARY.json",
        help="exit with code 1 if a group of this earlier summary is missing now, or slower by more than the tolerance "
        "and with an interval below 1",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="FRACTION", help="slowdown that the gate accepts (default: 0.05)"
    )
    return parser


def _default_output_dir(folders: Sequence[Path]) -> Path:
    return folders[0] / "summary" if len(folders) == 1 else Path("summary")


def latest_sweep() -> Path:
    """Return the sweep directory in multirun/ that was started or resumed last.

    Raises:
        UserError: there is no sweep.
    """
    sweep = next(iter(newest_sweeps()), None)
    if sweep is None:
        raise UserError("latest: there is no sweep in multirun/.")
    return sweep


if __name__ == "__main__":
    run_command(main)
