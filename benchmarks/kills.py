"""Is anything lost, left behind or stuck, whatever is killed and whenever?

    python benchmarks/kills.py                               # 20 kills of a sweep, then 10 minutes of kills of ranks
    python benchmarks/kills.py --parts resume --kills 50
    python benchmarks/kills.py --parts soak --minutes 1 --seed 7

`resume`: a sweep over two seeds and one and two ranks is killed (SIGKILL) at a random moment after its start, gone on
with (`sweep.resume`), killed again, and so on; when it is whole, another one begins. Each whole one is compared with
one that nobody disturbed: hashes, and every loss and accuracy of every epoch and rank, bit by bit.

`soak`: sweeps of runs of two ranks, in which at random moments a rank, both, or the process that launched them is
killed, or a rank is stopped, so that it hangs. Each must end by itself, name a killed rank within ten seconds, and
leave records that can be read and no process.

Printed: runs started, faults injected, hangs, orphans, records lost, differences, and the longest time until a dead
rank was noticed. Ends with 1 where something went wrong. What is random follows from `--seed`, as far as timing does.
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
_NOTICED_WITHIN_S = 10.0
_GONE_WITHIN_S = 60.0  # a process that is still importing torch notices after it
_COLUMNS = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "num_samples"]


@dataclass
class Tally:
    """What happened so far.

    Attributes:
        notes: what went wrong, in words.
        noticed_s: from each kill of a rank to the record that names it.
        gone_s: longest time from the end of a command to that of its last process.
    """

    runs: int = 0
    faults: int = 0
    hangs: int = 0
    orphans: int = 0
    lost: int = 0
    differences: int = 0
    noticed_s: list[float] = field(default_factory=list)
    gone_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        late = [each for each in self.noticed_s if each > _NOTICED_WITHIN_S]
        return not (self.hangs or self.orphans or self.lost or self.differences or late)


class Command:
    """`train.py` in a session of its own, whose processes are known by a mark in their environment."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments],
            cwd=folder, env=os.environ | {MARK: self.mark}, stdout=subprocess.DEVNULL, stderr=self.errors,
            start_new_session=True,
        )  # fmt: skip

    def others(self) -> list[psutil.Process]:
        """Its processes but the first, those that no longer belong to it included."""
        found = []
        for process in psutil.process_iter():
            try:
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if process.pid != self.process.pid and not is_dead and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end(self, tally: Tally, timeout_s: float = _HANGS_AFTER_S) -> int:
        """Wait until it has ended by itself, then look for what it left behind."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tally.hangs += 1
            tally.notes.append(f"hung: {self.tail()}")
            self.process.kill()
            self.process.wait()
        ended_at = time.monotonic()
        _, left = psutil.wait_procs(self.others(), timeout=_GONE_WITHIN_S)
        tally.gone_s = max(tally.gone_s, time.monotonic() - ended_at)
        for process in left:
            tally.orphans += 1
            tally.notes.append(f"left behind: {process}")
            process.kill()
        return self.process.returncode

    def tail(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-500:]


def until(condition: Callable[[], Any], command: Command, timeout_s: float = _HANGS_AFTER_S) -> Any:
    """What the condition gives once it is true; None: the command ended before, or it took too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            pass
        if command.process.poll() is not None:
            return None
        time.sleep(0.02)
    return None


def killed_and_gone_on_with(num_kills: int, draw: random.Random, tally: Tally) -> None:
    """Part `resume`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started_at = time.monotonic()
        whole = Command(folder, "-m", *SWEEP, "hydra.sweep.dir=whole")
        if whole.end(tally) != 0:
            raise SystemExit(f"the undisturbed sweep failed: {whole.tail()}")
        longest_s = time.monotonic() - started_at
        kills, number = 0, 0
        while kills < num_kills:
            number += 1
            sweep = folder / f"sweep{number}"
            while True:
                # Killed before there was a sweep, it is started once more.
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
            compare(sweep, folder / "whole", tally)
            print(f"  {kills} kills, sweep {number} is whole", file=sys.stderr, flush=True)


def compare(resumed: Path, whole: Path, tally: Tally) -> None:
    """Every run of a sweep with that of the same hash in one that nobody disturbed."""
    runs = {read_record(path.parent)["config_hash"]: path.parent for path in resumed.glob("*/run.json")}
    for path in sorted(whole.glob("*/run.json")):
        theirs = read_record(path.parent)
        tally.runs += 1
        if theirs["config_hash"] not in runs:
            tally.lost += 1
            tally.notes.append(f"{resumed.name}: no run like {path.parent.name}")
            continue
        run = runs[theirs["config_hash"]]
        ours, rows = read_record(run), read_epochs(run)
        same = last_attempts(rows).sort_values(["epoch", "rank"])[_COLUMNS].reset_index(drop=True)
        there = read_epochs(path.parent).sort_values(["epoch", "rank"])[_COLUMNS].reset_index(drop=True)
        if ours["status"] != "completed":
            tally.lost += 1
            tally.notes.append(f"{run}: {ours['status']}")
        elif not same.equals(there) or ours["result"]["test_loss"] != theirs["result"]["test_loss"]:
            tally.differences += 1
            tally.notes.append(f"{run}: differs\n{same}\n{there}")
        if rows.duplicated(["attempt", "epoch", "rank"]).any():
            tally.differences += 1
            tally.notes.append(f"{run}: an epoch stands twice")


def storm(minutes: float, draw: random.Random, tally: Tally) -> None:
    """Part `soak`."""
    deadline, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < deadline:
        with tempfile.TemporaryDirectory() as name:
            number += 1
            soak_once(Path(name), draw, tally)
        if number % 10 == 0:
            print(f"  {number} sweeps, {tally.faults} faults", file=sys.stderr, flush=True)


def soak_once(folder: Path, draw: random.Random, tally: Tally) -> None:
    """One sweep of two runs and the faults in it."""
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
    ours = list(folder.glob("sweep/*/run.json"))
    tally.runs += len(ours)
    for path in ours:
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
    wanted = ranks if fault == "both" else [draw.choice(ranks)]
    for pid in wanted:
        try:
            os.kill(pid, signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
        except ProcessLookupError:
            return
    tally.faults += len(wanted)
    start = time.monotonic()

    def noticed() -> bool:
        now = read_record(run)
        return now["status"] != "running" or len(now["attempts"]) > attempts

    if until(noticed, command, _HANGS_AFTER_S) is not None and fault != "stop":
        tally.noticed_s.append(time.monotonic() - start)


def check_record(run: Path, code: int, tally: Tally) -> None:
    """Whether what a run left can be read, and says how it ended."""
    try:
        record = read_record(run)
        read_epochs(run)
    except (OSError, ValueError) as error:
        tally.lost += 1
        tally.notes.append(f"{run}: {error}")
        return
    if record["status"] == "running" and code != -signal.SIGKILL:
        tally.lost += 1
        tally.notes.append(f"{run}: still says that it runs: {json.dumps(record['attempts'])[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["resume", "soak"], default=["resume", "soak"])
    parser.add_argument("--kills", type=int, default=20, help="of the part resume")
    parser.add_argument("--minutes", type=float, default=10, help="of the part soak")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    clean = True
    for part in arguments.parts:
        draw, tally = random.Random(arguments.seed), Tally()
        if part == "resume":
            killed_and_gone_on_with(arguments.kills, draw, tally)
        else:
            storm(arguments.minutes, draw, tally)
        print(
            f"{part}: runs {tally.runs}, faults injected {tally.faults}, hangs {tally.hangs}, orphans {tally.orphans}, "
            f"records lost {tally.lost}, differences {tally.differences}"
        )
        print(f"{part}: of a command that had ended, nothing was left within {tally.gone_s:.1f} s")
        if tally.noticed_s:
            print(f"{part}: a dead rank was noticed within {max(tally.noticed_s):.1f} s, {len(tally.noticed_s)} times")
        print(*tally.notes, sep="\n", end="\n" if tally.notes else "")
        clean = clean and tally.is_clean
    sys.exit(not clean)


if __name__ == "__main__":
    main()
