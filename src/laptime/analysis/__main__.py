"""python -m laptime.analysis: tables, plots and reports from any run or sweep directories."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from laptime.errors import UserError, exit_code_of
from laptime.record.latest import newest_sweeps

_TOLERANCE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where the gate failed, 2 for a mistake in what was typed or a missing baseline."""
    from laptime.terminal import replace_unencodable

    replace_unencodable()
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from laptime.analysis.analyze import analyze
    from laptime.analysis.answer import problems
    from laptime.analysis.gate import Verdict, check
    from laptime.analysis.report import print_analysis
    from laptime.analysis.scaling import parse_world_sizes
    from laptime.analysis.wording import check_words
    from laptime.analysis.write import write_reports, write_tables
    from laptime.terminal import ignore_broken_pipe

    if args.target_accuracy is not None and not 0 < args.target_accuracy <= 1:
        raise UserError(f"--target-accuracy {args.target_accuracy}: must be a share between 0 and 1.")
    tolerance = _TOLERANCE if args.tolerance is None else args.tolerance
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance}: must be a share from 0 to less than 1.")
    if args.gate is None and args.tolerance is not None:
        raise UserError(f"--tolerance {tolerance}: is what --gate lets pass. Add --gate FILE, or leave it out.")
    folders = [latest_sweep() if folder == "latest" else Path(folder) for folder in args.folders]
    analysis = analyze(folders, args.baseline, args.by, args.target_accuracy, parse_world_sizes(args.project))
    out = Path(args.out) if args.out else _default_output_dir(folders)
    if args.gate is not None and Path(args.gate).resolve() == (out / "summary.json").resolve():
        raise UserError(
            f"--gate {args.gate}: would be overwritten. Keep a copy elsewhere, or write elsewhere with --out."
        )
    console = Console()
    with ignore_broken_pipe():
        print_analysis(analysis, console)
    if not analysis.runs:
        raise UserError(f"no completed run in or below {', '.join(map(str, folders))}.")
    checks = check(analysis, Path(args.gate), tolerance) if args.gate is not None else []
    write_tables(analysis, out)
    write_reports(analysis, out)
    with ignore_broken_pipe():
        console.print(f"\nReport       {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
        for each in checks:
            print(check_words(each))
    missing = problems(analysis)
    for problem in missing:
        print(f"error: {problem}", file=sys.stderr)
    if any(each.verdict is not Verdict.OK for each in checks):
        return 1
    return UserError.exit_code if missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m laptime.analysis", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run or sweep directories; latest: the newest sweep")
    parser.add_argument("--baseline", metavar="KEY=VALUE", help="what others are compared with, like device=cpu")
    parser.add_argument("--by", action="append", default=[], metavar="KEY", help="compare by this key, all else equal")
    parser.add_argument("--out", metavar="DIR", help="where to write; default: summary/ in the one directory given")
    parser.add_argument("--target-accuracy", type=float, metavar="SHARE", help="report the time to reach it")
    parser.add_argument("--project", default="8,16", metavar="N,N", help="numbers of ranks to project the scaling to")
    parser.add_argument(
        "--gate",
        metavar="SUMMARY.json",
        help="exit with 1 where the throughput of a group in that summary fell by more than the "
        "tolerance and its interval lies below 1, or where the group is missing now",
    )
    parser.add_argument("--tolerance", type=float, metavar="SHARE", help="that the gate lets pass; default: 0.05")
    return parser


def _default_output_dir(folders: Sequence[Path]) -> Path:
    return folders[0] / "summary" if len(folders) == 1 else Path("summary")


def latest_sweep() -> Path:
    """The sweep directory below multirun/ that was started or resumed last.

    Raises:
        UserError: there is none.
    """
    found = next(iter(newest_sweeps()), None)
    if found is None:
        raise UserError("latest: there is no sweep below multirun/.")
    return found


if __name__ == "__main__":
    sys.exit(main())
