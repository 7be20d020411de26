"""Resumed sweeps, real and tiny: which runs are kept or retried. The results equal those of an uninterrupted sweep."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support import processes
from tests.support.processes import until
from tests.support.records import write_record
from tests.support.settings import NO_REPORT, QUICK, TINY

from laptime.record import directory as run_dir
from laptime.record.epochs import last_attempts
from laptime.record.files import read_epochs, read_record
from laptime.record.plan import read_plan, write_plan
from laptime.sweeps.earlier import move_to_earlier
from laptime.sweeps.resume import open_sweep

TINY_SWEEP = ("-m", *TINY, NO_REPORT)
SWEEP = Path("multirun/sweep")
INTO = f"hydra.sweep.dir={SWEEP}"


def numbers(sweep: Path = SWEEP) -> list[int]:
    return sorted(run_dir.numbered_runs(sweep))


def seeds(sweep: Path = SWEEP) -> list[int]:
    return [read_record(sweep / str(number))["seed"] for number in numbers(sweep)]


def curve(run: Path) -> list[tuple[Any, ...]]:
    rows = last_attempts(read_epochs(run))
    return list(rows[["epoch", "rank", "train_loss", "val_loss", "val_accuracy"]].itertuples(index=False, name=None))


def change(run: Path, **sections: Any) -> None:
    record = read_record(run)
    for name, values in sections.items():
        record[name] = (record[name] or {}) | values if isinstance(values, dict) else values
    write_record(run, record)


@pytest.mark.soak
def test_repeats_are_added_to_a_finished_sweep_by_one_command(train, work_folder):
    assert train(*TINY_SWEEP, INTO, "training.epochs=1", "optimizer.lr=0.001,0.002").returncode == 0
    before = [(SWEEP / str(number) / "run.json").read_bytes() for number in (0, 1)]
    done = train("sweep.resume=latest", "seed=1,2")
    assert done.returncode == 0, done.stderr
    for line in (
        "run 0 (seed=1 optimizer.lr=0.001): completed, skipped\n",
        "run 1 (seed=1 optimizer.lr=0.002): completed, skipped\n",
        "run 2 (seed=2 optimizer.lr=0.001): new\n",
        "run 3 (seed=2 optimizer.lr=0.002): new\n",
    ):
        assert line in done.stderr
    assert [(SWEEP / str(number) / "run.json").read_bytes() for number in (0, 1)] == before
    assert seeds() == [1, 1, 2, 2]

    done = train("-m", f"sweep.resume={SWEEP}")
    assert done.returncode == 0, done.stderr
    assert "all 4 runs are completed" in done.stderr and "Report" in done.stdout
    assert numbers() == [0, 1, 2, 3]
    groups = json.loads((SWEEP / "summary/summary.json").read_text())["groups"]
    assert [group["seeds"] for group in groups] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(("epochs", "continues"), [(3, True), pytest.param(2, False, marks=pytest.mark.soak)])
def test_a_failed_run_is_retried_in_its_own_directory(epochs, continues, train, work_folder):
    breaks = "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:raise,once:true}"
    common = ["-m", *TINY, f"training.epochs={epochs}", breaks]
    common += [NO_REPORT] if continues else []
    done = train(*common, INTO, "seed=1,2")
    assert done.returncode == 1
    assert f"sweep.resume={SWEEP}" in done.stdout
    failed = read_record(SWEEP / "0")
    assert failed["status"] == "failed"

    done = train("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert "run 1 (seed=2): completed, skipped" in done.stderr
    run, record = SWEEP / "0", read_record(SWEEP / "0")
    assert record["status"] == "completed" and record["config_hash"] == failed["config_hash"]
    assert numbers() == [0, 1]
    rows = [(row.epoch, row.attempt, row.is_warmup) for row in read_epochs(run).itertuples()]
    if continues:
        assert "run 0 (seed=1): failed (rank 0: ValueError: broken on purpose), retried from its last" in done.stderr
        assert rows == [(0, 0, True), (1, 1, True), (2, 1, False)]
        assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    else:
        # The only remaining epoch would be a warm-up epoch, so nothing would be measured.
        assert "retried from the beginning: all remaining epochs would be warm-up" in done.stderr
        assert rows == [(0, 0, True), (1, 0, False)]
        assert read_record(run / "earlier/0")["status"] == "failed"
        # The report of the resumed sweep covers the runs of both commands.
        summary = json.loads((SWEEP / "summary/summary.json").read_text())
        assert [group["seeds"] for group in summary["groups"]] == [[1, 2]]
        assert "TensorBoard" not in done.stdout, "logger=none"
    # Uninterrupted, because the file `broken` exists already.
    assert train(*common, "hydra.sweep.dir=whole", "seed=1").returncode == 0
    assert curve(run) == curve(Path("whole/0"))


def test_a_killed_sweep_that_is_resumed_equals_an_undisturbed_one(start, train, work_folder):
    """It is killed in the middle of its third epoch. While it runs, no other process can resume it."""
    pauses = "+callbacks.pause={_target_:pauses.PauseOnce,epoch:2,batch:3}"
    common = [*TINY_SWEEP, "training.epochs=5", pauses]
    killed = start(*common, INTO, "seed=1,2")
    until(Path("paused").exists, killed)
    refused = train("sweep.resume=latest")
    assert refused.returncode == 2
    assert f"this sweep is still running (process {killed.pid})" in refused.stderr
    (rank,) = read_record(SWEEP / "0")["strategy"]["rank_pids"]
    killed.kill()
    killed.communicate()
    until(lambda: not psutil.pid_exists(rank) or psutil.Process(rank).status() == psutil.STATUS_ZOMBIE)

    done = train("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert "from its last checkpoint" in done.stderr and "run 1 (seed=2): new" in done.stderr
    assert train(*common, "hydra.sweep.dir=whole", "seed=1,2").returncode == 0
    for number in ("0", "1"):
        resumed, whole = SWEEP / number, Path("whole") / number
        assert curve(resumed) == curve(whole)
        ours, theirs = read_record(resumed), read_record(whole)
        assert ours["config_hash"] == theirs["config_hash"]
        assert ours["result"]["test_loss"] == theirs["result"]["test_loss"]
    # The interrupted epoch was measured again, once, by the second attempt.
    rows = read_epochs(SWEEP / "0")
    assert list(zip(rows["epoch"], rows["attempt"], strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]


def kills(*arguments: str) -> str:
    """The output of benchmarks/kills.py, which must exit with 0."""
    script = processes.ROOT / "benchmarks" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, timeout=1100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_whenever_it_is_killed_nothing_is_lost(work_folder):
    """20 kills at random moments. Each sweep, resumed until it is complete, equals an uninterrupted one."""
    output = kills("--parts", "resume", "--kills", "20")
    assert "faults injected 20, hangs 0, orphans 0, records lost 0, differences 0" in output


@pytest.mark.soak
def test_whatever_is_killed_the_others_end_and_say_so(work_folder):
    assert "hangs 0, orphans 0, records lost 0, differences 0" in kills("--parts", "soak", "--minutes", "1")


def test_runs_whose_checkpoints_are_damaged_start_from_the_beginning(two_runs, train):
    for number, damage in enumerate((b"", b"cut")):
        change(two_runs / str(number), status="failed")
        paths = list((two_runs / str(number) / "checkpoints").glob("*.ckpt"))
        assert paths
        for path in paths:
            path.write_bytes(damage)
    done = train("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        assert f"run {number} (seed={number + 1}): failed, retried from the beginning: no complete checkpoint" in (
            done.stderr
        )
        assert read_record(two_runs / str(number))["status"] == "completed"


def test_changes_since_the_earlier_run_are_printed(two_runs, train):
    change(two_runs / "0", environment={"code_hash": "other"})
    change(two_runs / "1", hashed_config={"optimizer.lr": 0.5}, config_hash="other")
    error = train("sweep.resume=latest").stderr
    assert "run 0 (seed=1): completed, skipped; measured with different code" in error
    assert "Delete multirun/sweep/0 to run it again" in error
    assert "run 2 (seed=2): new: run 1 with the same overrides had optimizer.lr 0.5 then, 0.0005 now" in error


def test_a_run_that_failed_with_other_code_starts_from_the_beginning(two_runs, train):
    error = {"type": "ValueError", "message": "broken"}
    change(two_runs / "0", environment={"code_hash": "other"}, status="failed", error=error)
    output = train("sweep.resume=latest").stderr
    assert "run 0 (seed=1): failed (broken), retried from the beginning: now with different code" in output
    assert read_record(two_runs / "0/earlier/0")["environment"]["code_hash"] == "other"
    assert read_record(two_runs / "0")["environment"]["code_hash"] != "other"
    assert len(read_epochs(two_runs / "0")) == 1


def misspell(run: Path, key: str) -> None:
    path = run / "run.json"
    path.write_text(path.read_text().replace(f'"{key}"', '"misspelt"'))


UNREADABLE = ["", "[]", '{"schema_version": 1}', '{"schema_version": 1, "status": "completed"}',
              '{"schema_version": 1, "error": 7}']  # fmt: skip
KEYS = ["threads_per_rank", "world_size", "code_hash", "packages", "started_at"]


def test_a_record_that_cannot_be_read_is_recognized(two_runs):
    whole = (two_runs / "1/run.json").read_text()
    for text in UNREADABLE:
        (two_runs / "1/run.json").write_text(text)
        first, second = open_sweep("latest", read_only=True).runs
        assert (first.is_completed, second.is_completed) == (True, False), text
        assert second.end_text == "no readable run.json", text
    for key in KEYS:
        (two_runs / "1/run.json").write_text(whole)
        assert open_sweep("latest", read_only=True).runs[1].is_completed
        misspell(two_runs / "1", key)
        assert open_sweep("latest", read_only=True).runs[1].end_text == "no readable run.json", key


def test_runs_whose_records_cannot_be_read_are_repeated(two_runs, train):
    (two_runs / "0/run.json").write_text("[]")
    misspell(two_runs / "1", "packages")
    damaged = (two_runs / "1/run.json").read_text()
    done = train("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    for number, text in enumerate(("[]", damaged)):
        line = f"run {number} (seed={number + 1}): no readable run.json, retried from the beginning"
        assert line in done.stderr
        assert read_record(two_runs / str(number))["status"] == "completed"
        assert (two_runs / str(number) / "earlier/0/run.json").read_text() == text


def test_unreadable_overrides_affect_only_their_run(two_runs, train):
    (two_runs / "1/run.json").unlink()
    for content in (b"5", b"- seed=2\n- training.ep", b"\xff\xfe- x"):
        (two_runs / "1/.hydra/overrides.yaml").write_bytes(content)
        first, second = open_sweep("latest", read_only=True).runs
        assert first.is_completed and second.is_unidentified, content
    done = train("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert numbers() == [0, 1] and read_record(two_runs / "1")["seed"] == 2


def test_files_moved_to_earlier_before_are_kept(work_folder):
    (work_folder / "earlier/1").mkdir(parents=True)
    (work_folder / "run.json").write_text("older")
    move_to_earlier(work_folder)
    assert (work_folder / "earlier/2/run.json").read_text() == "older"
    assert not (work_folder / "run.json").exists()


def test_the_command_line_of_the_sweep_survives_a_full_disk(two_runs, train):
    (two_runs / "1/run.json").unlink()
    before = (two_runs / "multirun.yaml").read_bytes()
    assert len(before) > 2048
    ended = processes.run("sweep.resume=latest", "seed=1,2,3", limits={resource.RLIMIT_FSIZE: 2048})
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr and "File too large" in ended.stderr
    assert (two_runs / "multirun.yaml").read_bytes() == before


def test_runs_that_could_not_be_built_keep_their_numbers(train, work_folder):
    too_large = [*QUICK, "dataset=synthetic", "model.hidden_sizes=[100000000]", "training.epochs=1"]
    assert train("-m", *too_large, NO_REPORT, INTO, "sweep.notify=echo", "seed=1,2").returncode == 2
    for had_notify in (True, False):  # the last command line of the second resume has no sweep.notify
        done = train("sweep.resume=latest")
        assert ("sweep.notify is not kept" in done.stderr) is had_notify
        assert numbers() == [0, 1]


@pytest.fixture
def ended_early(two_runs: Path) -> None:
    """A sweep of three that ended after two."""
    write_plan(SWEEP, {0: "seed=1", 1: "seed=2", 2: "seed=3"})
    path = SWEEP / "multirun.yaml"
    path.write_text(path.read_text().replace("seed=1,2", "seed=1,2,3"))


@pytest.mark.soak
def test_a_run_that_never_began_has_its_number_kept(ended_early, train):
    done = train("sweep.resume=latest", "seed=4,5")
    assert "run 2 (seed=3): not started; not part of this command" in done.stderr
    assert numbers() == [0, 1, 3, 4] and seeds() == [1, 2, 4, 5]
    done = train("sweep.resume=latest", "sweep.dry_run=true")
    assert "1 of 5 runs to do" in " ".join(done.stdout.split())
    assert train("sweep.resume=latest").returncode == 0
    assert numbers() == [0, 1, 2, 3, 4] and read_record(SWEEP / "2")["seed"] == 3


def test_added_repeats_stop_at_the_limit_and_take_no_planned_number(ended_early, train):
    done = train("sweep.resume=latest", "seed=1", "measure.target_interval=1e-9", "measure.max_repeats=4")
    assert done.returncode == 0, done.stderr
    assert numbers() == [0, 1, 3, 4] and seeds() == [1, 2, 3, 4]
    assert read_plan(SWEEP)[2] == "seed=3" and set(numbers()) < set(read_plan(SWEEP))


@pytest.mark.soak
def test_jobs_with_equal_configurations_are_both_resumed(train, work_folder):
    """Without an accelerator, device=auto is the CPU. Two runs of one command line stay two when they are resumed."""
    assert train(*TINY_SWEEP, INTO, "training.epochs=1", "device=cpu,auto").returncode == 0
    change(SWEEP / "1", status="failed")
    done = train("sweep.resume=latest")
    assert "run 0 (device=cpu): completed, skipped" in done.stderr
    assert "run 1 (device=auto): failed, retried" in done.stderr
    assert numbers() == [0, 1] and read_record(SWEEP / "1")["status"] == "completed"
