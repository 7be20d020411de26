"""Going on with an earlier sweep: what stands, what is retried, what is new, and what is refused. Real, tiny sweeps."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from laptime import record as records
from laptime import run_dir
from laptime.cli import main
from laptime.environment import hostname_hash
from laptime.errors import UserError
from laptime.record import read_epochs, read_record
from laptime.resume_sweep import EarlierRun, EarlierSweep, living_ranks, merged

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
QUICK = ["dataset.limit=500", "device=cpu", "logger=none", "strategy.threads_per_rank=1", "measure.breakdown=false"]
SWEEP = Path("multirun/sweep")
INTO = f"hydra.sweep.dir={SWEEP}"


def numbers(sweep: Path = SWEEP) -> list[int]:
    return sorted(run_dir.numbered_runs(sweep))


def seeds(sweep: Path = SWEEP) -> list[int]:
    return [read_record(sweep / str(number))["seed"] for number in numbers(sweep)]


def times(sweep: Path) -> dict[Path, float]:
    """When each file was changed, but for the one that says who uses the sweep."""
    return {path: path.stat().st_mtime for path in sweep.rglob("*") if path.name != ".laptime"}


def curve(run: Path) -> list[tuple]:
    rows = records.each_epoch_once(read_epochs(run))
    return list(rows[["epoch", "rank", "train_loss", "val_loss", "val_accuracy"]].itertuples(index=False, name=None))


@pytest.fixture
def call(capfd) -> Callable[..., SimpleNamespace]:
    """The command line within this process: its ranks are processes of their own all the same."""

    def run(*arguments: str) -> SimpleNamespace:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=captured.out, stderr=captured.err)

    return run


def refusal(arguments: list[str], capfd) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


def test_repeats_are_added_to_a_finished_sweep_by_one_command(call, work_folder):
    assert call("-m", *QUICK, INTO, "training.epochs=1", "optimizer.lr=0.001,0.002").returncode == 0
    before = [(SWEEP / str(number) / "run.json").read_bytes() for number in (0, 1)]
    done = call("sweep.resume=latest", "seed=1,2")
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
    groups = json.loads((SWEEP / "summary/summary.json").read_text())["groups"]
    assert [group["seeds"] for group in groups] == [[1, 2], [1, 2]]

    done = call("-m", f"sweep.resume={SWEEP}")
    assert done.returncode == 0, done.stderr
    assert "all 4 runs are completed" in done.stderr
    assert "Report" in done.stdout
    assert numbers() == [0, 1, 2, 3]


def test_a_resumed_sweep_goes_on_until_the_interval_or_the_limit(call, work_folder):
    assert call("-m", *QUICK, INTO, "training.epochs=2", "seed=1,2").returncode == 0
    done = call("sweep.resume=latest", "measure.target_interval=1e-9", "measure.max_repeats=4")
    assert done.returncode == 0, done.stderr
    assert seeds() == [1, 2, 3, 4]


@pytest.mark.parametrize(("epochs", "goes_on"), [(3, True), (2, False)])
def test_a_failed_run_is_retried_in_its_own_directory(epochs, goes_on, call, breaking, work_folder):
    changed = [f"training.epochs={epochs}", "strategy.world_size=1", "dataset.limit=500"]
    replaced = ("training.epochs=", "strategy.world_size=", "dataset.limit=")
    typed = [each for each in breaking(0, 1, "raise", once=True) if not each.startswith(replaced)]
    typed += [*changed, "strategy.threads_per_rank=1", "measure.breakdown=false"]
    done = call("-m", *typed, INTO, "seed=1,2")
    assert done.returncode == 1
    assert f"sweep.resume={SWEEP}" in done.stdout
    failed = read_record(SWEEP / "0")
    assert failed["status"] == "failed"

    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert "run 1 (seed=2): completed, skipped" in done.stderr
    run, record = SWEEP / "0", read_record(SWEEP / "0")
    assert record["status"] == "completed" and record["config_hash"] == failed["config_hash"]
    assert numbers() == [0, 1]
    rows = read_epochs(run)
    if goes_on:
        assert "run 0 (seed=1): failed (rank 0: ValueError: broken on purpose), retried from its last" in done.stderr
        assert [(row.epoch, row.attempt, row.is_warmup) for row in rows.itertuples()] == [
            (0, 0, True),
            (1, 1, True),
            (2, 1, False),
        ]
        assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    else:
        # The one epoch that is left would be cold, so that nothing were measured.
        assert "retried from the beginning: the epochs left would all be warm-up" in done.stderr
        assert [(row.epoch, row.attempt, row.is_warmup) for row in rows.itertuples()] == [(0, 0, True), (1, 0, False)]
        assert read_record(run / "earlier/0")["status"] == "failed"
    # Undisturbed now, as the file remembers that it broke.
    assert call("-m", *typed, "hydra.sweep.dir=whole", "seed=1").returncode == 0
    assert curve(run) == curve(Path("whole/0"))
    summary = json.loads((SWEEP / "summary/summary.json").read_text())
    assert [group["seeds"] for group in summary["groups"]] == [[1, 2]]


@pytest.mark.slow
def test_a_killed_sweep_that_is_resumed_equals_an_undisturbed_one(call, work_folder):
    typed = [*QUICK[1:], "dataset.limit=20000", "training.epochs=5", "training.batch_size=32"]
    killed = subprocess.Popen(
        [sys.executable, str(TRAIN), "-m", *typed, INTO, "seed=1,2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(read_epochs(SWEEP / "0")) < 2:
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.02)
    (rank,) = read_record(SWEEP / "0")["strategy"]["rank_pids"]
    killed.kill()
    killed.communicate()
    psutil.wait_procs([psutil.Process(rank)] if psutil.pid_exists(rank) else [], timeout=30)

    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert "from its last checkpoint" in done.stderr and "run 1 (seed=2): new" in done.stderr
    assert call("-m", *typed, "hydra.sweep.dir=whole", "seed=1,2").returncode == 0
    for number in ("0", "1"):
        resumed, whole = SWEEP / number, Path("whole") / number
        assert curve(resumed) == curve(whole)
        ours, theirs = read_record(resumed), read_record(whole)
        assert ours["config_hash"] == theirs["config_hash"]
        assert ours["result"]["test_loss"] == theirs["result"]["test_loss"]


def kills(*arguments: str) -> str:
    """What benchmarks/kills.py prints, which must find nothing wrong."""
    script = TRAIN.parent / "benchmarks" / "kills.py"
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_whenever_it_is_killed_nothing_is_lost(work_folder):
    """20 kills at random moments; each sweep, once gone on with until it is whole, equals one that nobody disturbed."""
    found = kills("--parts", "resume", "--kills", "20")
    assert "faults injected 20, hangs 0, orphans 0, records lost 0, differences 0" in found


@pytest.mark.slow
def test_whatever_is_killed_the_others_end_and_say_so(work_folder):
    assert "hangs 0, orphans 0, records lost 0, differences 0" in kills("--parts", "soak", "--minutes", "1")


@pytest.mark.parametrize("damage", [b"", b"cut"])
def test_a_run_whose_checkpoints_are_damaged_starts_from_the_beginning(damage, two_runs, call):
    change(two_runs / "0", status="failed")
    for path in (two_runs / "0/checkpoints").glob("*.ckpt"):
        path.write_bytes(damage)
    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert "retried from the beginning: no whole checkpoint" in done.stderr
    assert read_record(two_runs / "0")["status"] == "completed"


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory) -> Path:
    """Two runs of one epoch, seeds 1 and 2, trained once for all tests."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, str(TRAIN), "-m", *QUICK, INTO, "training.epochs=1", "seed=1,2"]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return folder / SWEEP


@pytest.fixture
def two_runs(finished_sweep, work_folder) -> Path:
    shutil.copytree(finished_sweep, SWEEP)
    return SWEEP


def change(run: Path, **sections: dict) -> None:
    record = read_record(run)
    for name, values in sections.items():
        record[name] = (record[name] or {}) | values if isinstance(values, dict) else values
    records.write_record(run, record)


def test_what_has_changed_since_is_said_per_run(two_runs, call):
    change(two_runs / "0", environment={"code_hash": "other"})
    change(two_runs / "1", hashed_config={"optimizer.lr": 0.5}, config_hash="other")
    error = call("sweep.resume=latest").stderr
    assert "run 0 (seed=1): completed, skipped; measured with other code" in error
    assert "delete multirun/sweep/0 to run it again" in error
    assert "run 2 (seed=2): new: run 1 of the same overrides had optimizer.lr 0.5 then, 0.0005 now" in error


def test_a_run_that_failed_with_other_code_starts_afresh(two_runs, call):
    error = {"type": "ValueError", "message": "broken"}
    change(two_runs / "0", environment={"code_hash": "other"}, status="failed", error=error)
    error = call("sweep.resume=latest").stderr
    assert "run 0 (seed=1): failed (broken), retried from the beginning, now with other code" in error
    assert read_record(two_runs / "0/earlier/0")["environment"]["code_hash"] == "other"
    assert read_record(two_runs / "0")["environment"]["code_hash"] != "other"
    assert len(read_epochs(two_runs / "0")) == 1


def test_a_sweep_that_is_running_is_refused(two_runs, capfd):
    other = psutil.Process(os.getppid())
    (two_runs / ".laptime").write_text(f"{other.pid} {other.create_time()} {hostname_hash()}\n")
    assert f"this sweep is still running (process {other.pid})" in refusal(["sweep.resume=latest"], capfd)
    (two_runs / ".laptime").unlink()
    started = records.timestamp(psutil.Process().create_time())
    change(two_runs / "1", status="running", started_at=started, strategy={"rank_pids": [os.getpid()]})
    assert f"run 1 is still running (process {os.getpid()})" in refusal(["sweep.resume=latest"], capfd)


def test_two_cannot_go_on_with_a_sweep_at_once(two_runs, capfd):
    code = f"import pathlib, time; from laptime.run_dir import use; use(pathlib.Path({str(two_runs.absolute())!r}))"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); time.sleep(600)"], stdout=subprocess.PIPE
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == b"1\n"
        assert f"this sweep is still running (process {first.pid})" in refusal(["sweep.resume=latest"], capfd)
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version": 1}',
        '{"schema_version": 1, "status": "completed"}',
        "",
        "[]",
        '{"schema_version": 1, "error": 7}',
    ],
)
def test_a_record_that_cannot_be_read_is_made_anew(text, two_runs, call):
    (two_runs / "1" / "run.json").write_text(text)
    done = call("sweep.resume=latest")
    assert "run 1 (seed=2): has no run.json that can be read, retried from the beginning" in done.stderr
    assert read_record(two_runs / "1")["status"] == "completed"
    assert (two_runs / "1/earlier/0/run.json").read_text() == text


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["sweep.resume=nowhere"], "sweep.resume=nowhere: there is no such directory"),
        (["sweep.resume=plain"], "sweep.resume=plain: is no sweep"),
        (["sweep.resume=latest"], "there is no sweep below multirun/"),
        (["-m", "sweep.resume=a,b"], "one sweep at a time"),
        (["sweep.resume=[a"], "not understood"),
    ],
)
def test_what_is_no_sweep_is_refused(typed, words, work_folder, capfd):
    Path("plain").mkdir()
    assert words in refusal(typed, capfd)
    assert [path.name for path in work_folder.rglob("*")] == ["plain"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("hydra.sweep.dir=other", "hydra.sweep.dir=other: is what it was"),
        ("training.epocs=2", "Did you mean training.epochs?"),
        ("strategy.threads_per_rank=0", "at least 1"),
    ],
)
def test_mistakes_in_what_is_added_change_nothing(typed, words, two_runs, capfd):
    before = times(two_runs)
    assert words in refusal(["sweep.resume=latest", typed], capfd)
    assert times(two_runs) == before


@pytest.mark.parametrize(
    ("before", "typed", "result"),
    [
        (["seed=1,2", "model=cnn"], ["seed=3"], ["seed=3", "model=cnn"]),
        (["model=mlp"], ["model=cnn", "training.epochs=2"], ["model=cnn", "training.epochs=2"]),
        (["+model.x=1"], ["model.x=2"], ["+model.x=2"]),
        (["model.x=1"], ["++model.x=2"], ["++model.x=2"]),
        (["+model.x=1", "seed=1"], ["~model.x"], ["seed=1"]),
        (["model.x=1"], ["~model.x"], ["~model.x"]),
        (["~callbacks.progress_bar"], ["seed=1"], ["~callbacks.progress_bar", "seed=1"]),
    ],
)
def test_what_is_typed_replaces_what_was(before, typed, result):
    assert merged(before, typed) == result


def earlier_run(pid: int, started: float, hostname_hash: str | None = None) -> EarlierRun:
    from laptime.device import cpu_name, usable_cores
    from laptime.environment import environment

    record = records.new_record()
    here = environment(cpu_name(), usable_cores())["hostname_hash"]
    record["environment"] = {"hostname_hash": hostname_hash or here}
    record["started_at"] = records.timestamp(started)
    record["strategy"]["rank_pids"] = [pid]
    records.write_record(Path(), record)
    return EarlierRun(0, Path(), record, [])


def test_a_process_that_only_has_the_pid_of_a_rank_is_none(work_folder):
    own, born = os.getpid(), psutil.Process().create_time()
    assert living_ranks(earlier_run(own, born)) == [own]
    assert living_ranks(earlier_run(own, born + 1000)) == [], "the run began after this process"
    assert living_ranks(earlier_run(own, born, hostname_hash="another machine")) == []
    run = earlier_run(own, born - 1000)
    os.utime("run.json", (born - 500, born - 500))
    assert living_ranks(run) == [], "the run wrote its last before this process began"


def of_ranks(world_size: int, threads: int | str) -> dict:
    strategy = {"world_size": world_size, "threads_per_rank": threads}
    return {"device": {"name": "cpu"}, "strategy": strategy}


def test_automatic_threads_stay_what_they_were(two_runs, monkeypatch):
    for module in ("launch", "resume_sweep"):
        monkeypatch.setattr(f"laptime.{module}.usable_cores", lambda: 4)
    for run in (two_runs / "0", two_runs / "1"):
        config = read_record(run)["config"]
        config["strategy"]["threads_per_rank"] = "auto"
        change(run, config=config, strategy={"threads_per_rank": 2})
    sweep = EarlierSweep(str(two_runs))
    assert sweep.sweep_world_size([of_ranks(1, "auto")]) == 2
    assert sweep.sweep_world_size([of_ranks(4, 1)]) == 4
    with pytest.raises(UserError, match="is 1 with up to 4 ranks on 4 cores, and was 2 in sweep"):
        sweep.sweep_world_size([of_ranks(1, "auto"), of_ranks(4, "auto")])


def misspell(run: Path, key: str) -> None:
    path = run / "run.json"
    path.write_text(path.read_text().replace(f'"{key}"', '"misspelt"'))


@pytest.mark.parametrize("key", ["threads_per_rank", "rank_pids", "code_hash", "packages", "git"])
def test_a_record_without_one_of_its_keys_is_made_anew(key, two_runs, call):
    misspell(two_runs / "1", key)
    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert (
        "run 0 (seed=1): completed" in done.stderr and "run 1 (seed=2): has no run.json that can be read" in done.stderr
    )
    assert read_record(two_runs / "1")["status"] == "completed"


@pytest.mark.parametrize("content", [b"\xff\xfe- x", b"5", b"- seed=2\n- training.ep"])
def test_overrides_that_cannot_be_read_stop_no_other_run(content, two_runs, call):
    (two_runs / "1/run.json").unlink()
    (two_runs / "1/.hydra/overrides.yaml").write_bytes(content)
    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted(two_runs.glob("[0-9]*"))] == ["0", "1"]
    assert read_record(two_runs / "1")["seed"] == 2


def test_what_the_sweep_was_started_with_survives_a_full_disk(two_runs):
    (two_runs / "1/run.json").unlink()
    before = (two_runs / "multirun.yaml").read_bytes()
    program = (
        "import resource, sys; from laptime.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\nmain(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "sweep.resume=latest", "seed=1,2,3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr and "File too large" in ended.stderr
    assert (two_runs / "multirun.yaml").read_bytes() == before


def test_what_was_set_aside_before_is_never_in_the_way(two_runs, call):
    (two_runs / "1/run.json").unlink()
    (two_runs / "1/earlier/1").mkdir(parents=True)
    done = call("sweep.resume=latest")
    assert done.returncode == 0, done.stderr
    assert (two_runs / "1/earlier/2").is_dir()


def test_what_could_not_be_built_keeps_its_number(call, work_folder):
    too_large = ["model.hidden_sizes=[100000000]", "training.epochs=1", "sweep.notify=echo"]
    assert call("-m", *QUICK, INTO, *too_large, "seed=1,2").returncode == 2
    for told in (True, False):  # the second time there was none any more
        done = call("sweep.resume=latest")
        assert ("sweep.notify is not taken over" in done.stderr) is told
        assert numbers() == [0, 1]


@pytest.fixture
def ended_early(two_runs):
    """A sweep of three that ended after two."""
    records.write_plan(SWEEP, {0: "seed=1", 1: "seed=2", 2: "seed=3"})
    path = SWEEP / "multirun.yaml"
    path.write_text(path.read_text().replace("seed=1,2", "seed=1,2,3"))


def test_a_run_that_never_began_has_its_number_kept(ended_early, call):
    done = call("sweep.resume=latest", "seed=4,5")
    assert "run 2 (seed=3): never began, not among these jobs" in done.stderr
    assert numbers() == [0, 1, 3, 4] and seeds() == [1, 2, 4, 5]
    done = call("sweep.resume=latest", "sweep.dry_run=true")
    assert "1 run to do of 5" in " ".join(done.stdout.split())
    assert call("sweep.resume=latest").returncode == 0
    assert numbers() == [0, 1, 2, 3, 4] and read_record(SWEEP / "2")["seed"] == 3


def test_a_dry_run_shows_the_runs_that_are_left_as_they_are(ended_early, call):
    done = call("sweep.resume=latest", "seed=1", "sweep.dry_run=true")
    shown = " ".join(done.stdout.split())
    assert "never began, not among these jobs" in shown and "sweep.dry_run" not in shown


def test_a_wrong_name_lists_the_sweeps_that_there_are(two_runs, capfd):
    assert f"The newest: {SWEEP}" in refusal(["sweep.resume=multirun/nope"], capfd)


def test_jobs_that_are_the_same_run_in_other_words_are_both_gone_on_with(call, work_folder):
    """Without an accelerator device=auto is the CPU: two runs at the start are two when they are gone on with."""
    assert call("-m", *QUICK[:1], *QUICK[2:], INTO, "training.epochs=1", "device=cpu,auto").returncode == 0
    change(SWEEP / "1", status="failed")
    done = call("sweep.resume=latest")
    assert (
        "run 0 (device=cpu): completed, skipped" in done.stderr
        and "run 1 (device=auto): failed, retried" in done.stderr
    )
    assert numbers() == [0, 1] and read_record(SWEEP / "1")["status"] == "completed"


def test_further_repeats_take_no_number_that_is_planned(ended_early, call):
    done = call("sweep.resume=latest", "seed=1", "measure.target_interval=0.0001", "measure.max_repeats=6")
    assert done.returncode == 0, done.stderr
    assert 2 not in numbers() and 3 in numbers()
    assert records.read_plan(SWEEP)[2] == "seed=3" and set(numbers()) < set(records.read_plan(SWEEP))


def test_a_directory_without_a_word_in_it_stays_whose_it_is(ended_early, call):
    (SWEEP / "2").mkdir()
    done = call("sweep.resume=latest", "seed=0,1,2,3", "sweep.dry_run=true")
    rows = [line.split() for line in done.stdout.splitlines() if "seed=" in line]
    assert {row[1]: row[3] for row in rows} == {"0": "seed=1", "1": "seed=2", "2": "seed=3", "3": "seed=0"}


def test_a_dry_run_changes_not_one_byte(two_runs, call):
    before = {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()}
    (SWEEP / ".laptime").unlink()
    del before[SWEEP / ".laptime"]
    assert call("sweep.resume=latest", "seed=1,2,3", "sweep.dry_run=true").returncode == 0
    assert {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()} == before


def test_a_doctored_plan_steers_no_terminal_and_no_number(two_runs, call):
    plan = {"runs": {"-1": "seed=4", "7" * 30: "seed=5", "1": "seed=2\x1b[31m", "2": "seed=3"}}
    (SWEEP / "plan.json").write_text(json.dumps(plan))
    done = call("sweep.resume=latest", "seed=1,2,4", "sweep.dry_run=true")
    assert "\x1b" not in done.stdout + done.stderr
    assert records.read_plan(SWEEP) == {1: "seed=2\\x1b[31m", 2: "seed=3"}
    row = next(line for line in done.stdout.splitlines() if "seed=4" in line)
    assert row.split()[1] == "3"
