"""Kill processes at random moments, and count lost records, orphaned processes and hangs.

    python benchmarks/kills.py                               # 20 kills of a sweep, then 10 minutes of kills of ranks
    python benchmarks/kills.py --parts resume --kills 50
    python benchmarks/kills.py --parts soak --minutes 1 --seed 7

`resume`: a sweep over two seeds and one and two ranks is killed (SIGKILL) at a random moment after its start, resumed
(`sweep.resume`), killed again, and so on. When it is complete, another one starts. Each complete sweep is compared with
an undisturbed one: hashes, and every loss and accuracy of every epoch and rank, bit by bit.

`soak`: sweeps of runs with two ranks. At random moments the script kills a rank, both ranks, or the process that
launched them, or stops a rank, so that it hangs. Each sweep must end by itself, name a killed rank within ten seconds,
and leave readable records and no process.

Printed: runs started, faults injected, hangs, orphans, records lost, differences, and the longest time until a dead
rank was detected. Exit code 1: something went wrong. `--seed` determines the faults, but not their exact timing.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from laptime.record.epochs import last_attempts
from laptime.record.files import read_epochs, read_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
MARK = "LAPTIME_KILLS"
COMMON = [
    "dataset.limit=6000", "training.batch_size=32", "logger=none", "device=cpu", "measure.breakdown=false",
    "measure.peak=false",
]  # fmt: skip
SWEEP = [*COMMON, "training.epochs=4", "seed=1,2", "strategy.world_size=1,2", "strategy.threads_per_rank=1"]
SOAK = [*COMMON, "training.epochs=6", "strategy.world_size=2", "strategy.threads_per_rank=1", "strategy.timeout_s=5"]
_HANGS_AFTER_S = 180.0
_DETECTED_WITHIN_S = 10.0
_GONE_WITHIN_S = 60.0  # a process that is importing torch detects the end of its parent only afterwards
_COLUMNS = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "num_samples"]


@dataclass
class Tally:
    """Counts of what happened.

    Attributes:
        notes: descriptions of what went wrong.
        detected_s: seconds from each kill of a rank to the record that names it.
        gone_s: longest time from the end of a command to the end of its last process.
    """

    runs: int = 0
    faults: int = 0
    hangs: int = 0
    orphans: int = 0
    lost: int = 0
    differences: int = 0
    detected_s: list[float] = field(default_factory=list)
    gone_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        late = [seconds for seconds in self.detected_s if seconds > _DETECTED_WITHIN_S]
        return not (self.hangs or self.orphans or self.lost or self.differences or late)


class Command:
    """`train.py` in its own session. A variable in the environment marks all of its processes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments],
            cwd=folder, env=os.environ | {MARK: self.mark}, stdout=subprocess.DEVNULL, stderr=self.errors,
            start_new_session=True,
        )  # fmt: skip

    def descendants(self) -> list[psutil.Process]:
        """All marked processes but the command itself, including those that have lost their parent."""
        descendants = []
        for process in psutil.process_iter():
            try:
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if process.pid != self.process.pid and not is_dead and process.environ().get(MARK) == self.mark:
                    descendants.append(process)
            except psutil.Error:
                continue
        return descendants

    def end(self, tally: Tally, timeout_s: float = _HANGS_AFTER_S) -> int:
        """Wait for the command to end by itself. Then kill and count the processes that it left behind."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tally.hangs += 1
            tally.notes.append(f"hung: {self.tail()}")
            self.process.kill()
            self.process.wait()
        ended_at = time.monotonic()
        _, alive = psutil.wait_procs(self.descendants(), timeout=_GONE_WITHIN_S)
        tally.gone_s = max(tally.gone_s, time.monotonic() - ended_at)
        for process in alive:
            tally.orphans += 1
            tally.notes.append(f"left behind: {process}")
            process.kill()
        return self.process.returncode

    def tail(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-500:]


def until(condition: Callable[[], Any], command: Command, timeout_s: float = _HANGS_AFTER_S) -> Any:
    """Wait for a condition and return its value; None if the command ends first or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            pass
        if command.process.poll() is not None:
            return None
        time.sleep(0.02)
    return None


def kill_and_resume(num_kills: int, draw: random.Random, tally: Tally) -> None:
    """Part `resume`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started_at = time.monotonic()
        undisturbed = Command(folder, "-m", *SWEEP, "hydra.sweep.dir=undisturbed")
        if undisturbed.end(tally) != 0:
            raise SystemExit(f"the undisturbed sweep failed: {undisturbed.tail()}")
        longest_s = time.monotonic() - started_at
        kills, number = 0, 0
        while kills < num_kills:
            number += 1
            sweep = folder / f"sweep{number}"
            while True:
                # If the kill came before the sweep existed, start it once more.
                has_begun = (sweep / "multirun.yaml").exists()
                if not has_begun:
                    shutil.rmtree(sweep, ignore_errors=True)
                start = [f"sweep.resume={sweep.name}"] if has_begun else ["-m", *SWEEP, f"hydra.sweep.dir={sweep.name}"]
                command = Command(folder, *start)
                if kills < num_kills:
                    try:
                        command.process.wait(draw.uniform(0, longest_s))
                    except subprocess.TimeoutExpired:
                        command.process.kill()
                        kills += 1
                        tally.faults += 1
                code = command.end(tally)
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    tally.lost += 1
                    tally.notes.append(f"ended with code {code}: {command.tail()}")
                    return
            compare(sweep, folder / "undisturbed", tally)
            print(f"  {kills} kills, sweep {number} is complete", file=sys.stderr, flush=True)


def compare(resumed: Path, undisturbed: Path, tally: Tally) -> None:
    """Compare each run of the undisturbed sweep with the run of the resumed sweep that has the same hash."""
    runs = {read_record(path.parent)["config_hash"]: path.parent for path in resumed.glob("*/run.json")}
    for path in sorted(undisturbed.glob("*/run.json")):
        expected = read_record(path.parent)
        tally.runs += 1
        if expected["config_hash"] not in runs:
            tally.lost += 1
            tally.notes.append(f"{resumed.name}: no run like {path.parent.name}")
            continue
        run = runs[expected["config_hash"]]
        record, rows = read_record(run), read_epochs(run)
        epochs = last_attempts(rows).sort_values(["epoch", "rank"])[_COLUMNS].reset_index(drop=True)
        expected_epochs = read_epochs(path.parent).sort_values(["epoch", "rank"])[_COLUMNS].reset_index(drop=True)
        if record["status"] != "completed":
            tally.lost += 1
            tally.notes.append(f"{run}: {record['status']}")
        elif not epochs.equals(expected_epochs) or record["result"]["test_loss"] != expected["result"]["test_loss"]:
            tally.differences += 1
            tally.notes.append(f"{run}: differs\n{epochs}\n{expected_epochs}")
        if rows.duplicated(["attempt", "epoch", "rank"]).any():
            tally.differences += 1
            tally.notes.append(f"{run}: epochs.csv has two rows for one epoch")


def soak(minutes: float, draw: random.Random, tally: Tally) -> None:
    """Part `soak`."""
    deadline, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < deadline:
        with tempfile.TemporaryDirectory() as name:
            number += 1
            soak_once(Path(name), draw, tally)
        if number % 10 == 0:
            print(f"  {number} sweeps, {tally.faults} faults", file=sys.stderr, flush=True)


def soak_once(folder: Path, draw: random.Random, tally: Tally) -> None:
    """Start a sweep of two runs and inject faults."""
    restarts = draw.choice([0, 1])
    hook = draw.choice(["none", "shared_memory"])
    command = Command(
        folder, "-m", *SOAK, "seed=1,2", f"strategy.max_restarts={restarts}", f"strategy.comm_hook={hook}",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    for run in (folder / "sweep/0", folder / "sweep/1"):
        if until(lambda run=run: read_record(run)["status"] == "running", command) is None:
            break
        for _ in range(draw.choice([1, 1, 2])):
            fault = draw.choice(["rank", "rank", "rank", "both", "launcher", "stop"])
            time.sleep(draw.uniform(0, 5))
            inject(fault, run, command, draw, tally)
    code = command.end(tally)
    paths = list(folder.glob("sweep/*/run.json"))
    tally.runs += len(paths)
    for path in paths:
        check_record(path.parent, code, tally)


def inject(fault: str, run: Path, command: Command, draw: random.Random, tally: Tally) -> None:
    record = until(lambda: read_record(run), command, 5.0)
    if record is None or record["status"] != "running":
        return
    attempts = len(record["attempts"])
    ranks = [pid for pid in record["strategy"]["rank_pids"] or [] if psutil.pid_exists(pid)]
    if fault == "launcher":
        tally.faults += 1
        command.process.kill()
        return
    if len(ranks) < 2:
        return
    victims = ranks if fault == "both" else [draw.choice(ranks)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
        except ProcessLookupError:
            return
    tally.faults += len(victims)
    start = time.monotonic()

    def is_detected() -> bool:
        record = read_record(run)
        return record["status"] != "running" or len(record["attempts"]) > attempts

    if until(is_detected, command, _HANGS_AFTER_S) is not None and fault != "stop":
        tally.detected_s.append(time.monotonic() - start)


def check_record(run: Path, code: int, tally: Tally) -> None:
    """Check that a run's files can be read, and that its record says how the run ended."""
    try:
        record = read_record(run)
        read_epochs(run)
    except (OSError, ValueError) as error:
        tally.lost += 1
        tally.notes.append(f"{run}: {error}")
        return
    if record["status"] == "running" and code != -signal.SIGKILL:
        tally.lost += 1
        tally.notes.append(f"{run}: the status is still running: {json.dumps(record['attempts'])[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["resume", "soak"], default=["resume", "soak"])
    parser.add_argument("--kills", type=int, default=20, help="number of kills in the part resume")
    parser.add_argument("--minutes", type=float, default=10, help="duration of the part soak")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    clean = True
    for part in arguments.parts:
        draw, tally = random.Random(arguments.seed), Tally()
        if part == "resume":
            kill_and_resume(arguments.kills, draw, tally)
        else:
            soak(arguments.minutes, draw, tally)
        print(
            f"{part}: runs {tally.runs}, faults injected {tally.faults}, hangs {tally.hangs}, orphans {tally.orphans}, "
            f"records lost {tally.lost}, differences {tally.differences}"
        )
        print(f"{part}: {tally.gone_s:.1f} s after the end of a command, all of its processes had ended")
        if tally.detected_s:
            times = f"{len(tally.detected_s)} times"
            print(f"{part}: a dead rank was detected within {max(tally.detected_s):.1f} s, {times}")
        print(*tally.notes, sep="\n", end="\n" if tally.notes else "")
        clean = clean and tally.is_clean
    sys.exit(not clean)


if __name__ == "__main__":
    main()
