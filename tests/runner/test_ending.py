"""Runs that end early or fail, and runs that resume from them: real processes, real signals."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tests.support import processes
from tests.support.processes import until
from tests.support.settings import TINY

import laptime
from laptime.cli import main
from laptime.errors import TrainingFailed, UserError
from laptime.machine.memory import peak_rss_bytes, reset_peak_rss
from laptime.record.files import read_epochs, read_record

STEPPED = (*TINY, "scheduler.step_size=2")
DIVERGING = (*TINY, "optimizer=sgd", "optimizer.lr=1e30")


def curve(*run_dirs: Path) -> list[tuple]:
    columns = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    return [row for run_dir in run_dirs for row in read_epochs(run_dir)[columns].itertuples(index=False, name=None)]


def signal_at(signum: int, epoch: int, batch: int) -> str:
    target = f"_target_:signal_at.SignalAt,signum:{int(signum)},epoch:{epoch},batch:{batch}"
    return f"+callbacks.signal={{{target}}}"


@pytest.fixture
def error_of(capfd):
    """A function that returns the error message of a command."""

    def run(*arguments: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert end.value.code == 2
        return capfd.readouterr().err

    return run


@pytest.fixture
def first(trained) -> Path:
    """A run of three epochs that other runs resume from. Tests that change it must copy it."""
    return trained(*STEPPED, "training.epochs=3")


@pytest.fixture
def undisturbed(trained) -> Path:
    """The same run with four epochs."""
    return trained(*STEPPED, "training.epochs=4")


@pytest.mark.parametrize("more", [[], ["dataset.rotation_degrees=20", "dataset.horizontal_flip=true"]])
def test_resumed_run_equals_the_uninterrupted_run_bit_for_bit(more, trained, work_folder):
    whole = trained(*STEPPED, "training.epochs=4", *more)
    half = trained(*STEPPED, "training.epochs=2", *more)
    laptime.run([*STEPPED, "training.epochs=4", *more, "hydra.run.dir=second", f"training.checkpoint={half}"])
    assert curve(half, Path("second")) == curve(whole)
    results = [read_record(path)["result"]["test_loss"] for path in (whole, Path("second"))]
    assert results[0] == results[1]


def test_resumed_run_has_a_warmup_epoch_again(work_folder):
    laptime.run([*TINY, "training.epochs=1"])
    record = laptime.run([*TINY, "training.epochs=3", "training.checkpoint=latest"])
    epochs = read_epochs(Path(record["run_dir"]))
    assert list(epochs["epoch"]) == [1, 2]
    assert list(epochs["is_warmup"]) == [True, False]


def test_resuming_a_finished_run_is_refused_with_a_remedy(first, error_of):
    message = error_of(*STEPPED, "training.epochs=3", f"training.checkpoint={first}")
    assert "has trained 3 epochs already" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=logistic_regression", "model"),
        ("model.hidden_sizes=[8]", "hidden_sizes"),
        ("seed=7", "seed is 1 in the checkpoint, 7 in the run"),
        ("optimizer.lr=0.01", "optimizer.lr is 0.0005 in the checkpoint, 0.01 in the run"),
        ("dataset.val_fraction=0.4", "dataset.val_fraction is 0.2 in the checkpoint, 0.4 in the run"),
        ("training.batch_size=64", "training.batch_size is 32 in the checkpoint, 64 in the run"),
        ("strategy.world_size=2", "strategy.world_size is 1 in the checkpoint, 2 in the run"),
    ],
)
def test_checkpoint_of_another_experiment_is_refused_with_the_difference(override, words, first, work_folder, train):
    kept = [common for common in STEPPED if not (override.startswith("model=") and common.startswith("model."))]
    done = train(*kept, "training.epochs=4", f"training.checkpoint={first}", override)
    assert done.returncode == 2
    assert "another experiment" in done.stderr and words in done.stderr
    assert list(work_folder.iterdir()) == []


def test_schedule_made_for_fewer_epochs_is_not_stretched(trained, error_of):
    shorter = trained(*TINY, "scheduler=cosine", "training.epochs=2")
    message = error_of(*TINY, "scheduler=cosine", "training.epochs=4", f"training.checkpoint={shorter}")
    assert "scheduler.T_max is 2 in the checkpoint, 4 in the run" in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_checkpoint_is_refused(content, work_folder, error_of):
    Path("broken.ckpt").write_bytes(content)
    assert "training.checkpoint=broken.ckpt: is damaged" in error_of(*TINY, "training.checkpoint=broken.ckpt")


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit": flip_a_bit,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "absent"])
def test_a_damaged_last_checkpoint_falls_back_to_the_previous_one(damage, first, undisturbed, work_folder):
    shutil.copytree(first, "first")
    last = Path("first/checkpoints/last.ckpt")
    if damage == "absent":
        last.unlink()
    else:
        last.write_bytes(DAMAGE[damage](last.read_bytes()))
    laptime.run([*STEPPED, "training.epochs=4", "hydra.run.dir=second", "training.checkpoint=first"])
    assert "resuming from the checkpoint before it" in Path("second/train.log").read_text()
    assert list(read_epochs(Path("second"))["epoch"]) == [2, 3]
    assert curve(Path("second")) == curve(undisturbed)[2:]


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_checkpoints_are_refused(damage, first, work_folder, error_of):
    shutil.copytree(first, "first")
    for name in ("last.ckpt", "previous.ckpt"):
        path = Path("first/checkpoints") / name
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    message = error_of(*STEPPED, "training.epochs=4", "training.checkpoint=first")
    assert "is damaged" in message and "Use first/checkpoints/best.ckpt instead." in message
    assert sorted(path.name for path in work_folder.iterdir()) == ["first"]


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize(
    "save", [lambda value, path: torch.save(value, path), lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_checkpoint_never_runs_code(save, work_folder, error_of):
    save({"laptime": Malicious(), "loops": {}}, Path("evil.ckpt"))
    assert "is damaged, or holds more than tensors and plain values" in error_of(*TINY, "training.checkpoint=evil.ckpt")
    assert not Path("owned").exists()


def test_foreign_checkpoint_is_refused(work_folder, error_of):
    torch.save({"state_dict": {}}, "foreign.ckpt")
    assert "not written by Laptime" in error_of(*TINY, "training.checkpoint=foreign.ckpt")


def test_resumed_run_keeps_the_best_checkpoint(first, work_folder):
    shutil.copytree(first, "first")
    # The resumed run must not replace the best checkpoint, because its loss can't beat the first run's.
    checkpoint = torch.load("first/checkpoints/last.ckpt", weights_only=True)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "best_val_loss" in value]
    state["best_val_loss"] = 0.0
    torch.save(checkpoint, "first/checkpoints/last.ckpt")
    laptime.run([*STEPPED, "training.epochs=4", "hydra.run.dir=second", "training.checkpoint=first"])
    assert Path("second/checkpoints/best.ckpt").read_bytes() == Path("first/checkpoints/best.ckpt").read_bytes()


def test_nan_loss_fails_the_run_and_names_epoch_and_step(train, work_folder):
    done = train(*DIVERGING, "hydra.run.dir=nan")
    assert done.returncode == 1
    assert "error: the loss became" in done.stderr and "Traceback" not in done.stderr
    record = read_record(Path("nan"))
    assert record["status"] == "failed"
    assert record["error"]["epoch"] == 0
    assert record["error"]["step"] >= 1, "the first loss was finite"
    assert f"in epoch 0, step {record['error']['step']}" in done.stderr
    assert record["result"]["test_loss"] is None
    last = Path("nan/train.log").read_text().splitlines()[-1]
    assert last.startswith("[20") and "the loss became" in last


def test_nan_step_does_not_depend_on_steps_per_execution(work_folder):
    steps = set()
    for grouping in (1, 3, 16):  # an epoch has 8 steps
        with pytest.raises(TrainingFailed, match=r"in epoch 0, step \d+") as failure:
            laptime.run([*DIVERGING, f"training.steps_per_execution={grouping}"])
        steps.add(failure.value.step)
    assert len(steps) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_keeps_what_was_measured_and_last_ckpt_resumes(signum, code, start, work_folder):
    settings = [*TINY, "dataset.num_train=2000"]  # long epochs, so that few end before the signal arrives
    run_dir = Path("stopped")
    process = start(*settings, "training.epochs=100000", f"hydra.run.dir={run_dir}")
    until(lambda: len(read_epochs(run_dir)) >= 2, process)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    record = read_record(run_dir)
    assert record["status"] == "interrupted"
    assert signal.Signals(signum).name in record["error"]["message"]
    epochs = len(read_epochs(run_dir))
    assert epochs >= 2
    assert record["timing"]["epoch_time_s"] > 0
    laptime.run([*settings, f"training.epochs={epochs + 1}", "hydra.run.dir=resumed", f"training.checkpoint={run_dir}"])
    laptime.run([*settings, f"training.epochs={epochs + 1}", "hydra.run.dir=whole"])
    assert curve(run_dir, Path("resumed")) == curve(Path("whole"))


def test_signal_after_the_last_epoch_gets_advice_that_works(train, work_folder):
    last_batch = signal_at(signal.SIGINT, epoch=1, batch=7)  # 240 images make 8 batches
    done = train(*STEPPED, "training.epochs=2", last_batch, "hydra.run.dir=stopped")
    assert done.returncode == 130 and "only the test is missing" in done.stderr, done.stderr
    assert len(read_epochs(Path("stopped"))) == 2
    (words,) = re.findall(r"evaluate\S* run=stopped", done.stderr)
    done = processes.run(
        words.split()[1], "--config-dir", ".", "latency.batch_sizes=[]", script=processes.ROOT / "evaluate.py"
    )
    assert done.returncode == 0, done.stderr


def test_signal_in_the_first_epoch_can_be_resumed(train, undisturbed, work_folder):
    done = train(*STEPPED, "training.epochs=4", signal_at(signal.SIGINT, epoch=0, batch=3), "hydra.run.dir=stopped")
    assert done.returncode == 130, done.stderr
    assert read_record(Path("stopped"))["status"] == "interrupted"
    assert read_epochs(Path("stopped")).empty
    checkpoint = torch.load("stopped/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 0
    done = processes.run("run=stopped", "latency.batch_sizes=[]", script=processes.ROOT / "evaluate.py")
    assert "these weights are not trained" in done.stderr
    laptime.run([*STEPPED, "training.epochs=4", "hydra.run.dir=resumed", "training.checkpoint=stopped"])
    assert curve(Path("resumed")) == curve(undisturbed)


def test_signal_leaves_no_data_workers_behind(start, work_folder):
    # A new session is the process group that gets a terminal's Ctrl-C, and its processes can be listed.
    process = start(*TINY, "dataset.pipeline=workers", "dataset.num_workers=2", "training.epochs=100000",
                    "hydra.run.dir=stopped", new_session=True)  # fmt: skip
    until(lambda: len(read_epochs(Path("stopped"))) >= 1, process)
    workers = until(lambda: psutil.Process(process.pid).children(recursive=True), process, what="data workers")
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=processes.DEADLINE_S)[1]
    until(lambda: not members(process.pid), what="nothing of its session is left")
    assert read_record(Path("stopped"))["status"] == "interrupted"


def members(session: int) -> list[int]:
    """Processes of a session."""
    pids = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                pids.append(pid)
        except OSError:  # ended meanwhile
            pass
    return pids


def test_killed_run_leaves_readable_files_and_resumes(start, work_folder):
    process = start(*TINY, "training.epochs=100000", "hydra.run.dir=killed")
    until(lambda: len(read_epochs(Path("killed"))) >= 2, process)
    process.kill()
    process.communicate()
    record = read_record(Path("killed"))
    assert record["status"] == "running"
    assert record["strategy"]["rank_pids"] == [process.pid]
    checkpoint = torch.load("killed/checkpoints/last.ckpt", weights_only=True)
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    record = laptime.run([*TINY, f"training.epochs={done + 1}", "training.checkpoint=killed"])
    assert record["status"] == "completed"


def test_error_during_training_is_recorded_with_its_traceback(work_folder):
    breaks = "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:raise}"
    with pytest.raises(ValueError, match="broken on purpose"):
        laptime.run([*TINY, breaks, "hydra.run.dir=broken"])
    record = read_record(Path("broken"))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "ValueError"
    assert "broken on purpose" in record["error"]["traceback"]


def test_interrupt_in_a_notebook_is_a_keyboard_interrupt(work_folder):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        laptime.run([*TINY, signal_at(signal.SIGINT, epoch=1, batch=2), "hydra.run.dir=stopped"])
    assert signal.getsignal(signal.SIGINT) is before
    assert len(read_epochs(Path("stopped"))) == 1
    assert read_record(Path("stopped"))["status"] == "interrupted"


def test_user_error_from_python_raises_and_writes_nothing(work_folder):
    with pytest.raises(UserError, match="dataset=mnits"):
        laptime.run(["dataset=mnits"])
    assert list(work_folder.iterdir()) == []


def test_peak_memory_is_that_of_the_run_alone(first):
    # getrusage would include the parent process and earlier peaks of this process.
    reset_peak_rss()
    ballast = bytearray(os.urandom(1)) * 300_000_000
    assert (with_ballast := peak_rss_bytes()) >= len(ballast)
    code = "from laptime.machine.memory import peak_rss_bytes; print(peak_rss_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=processes.DEADLINE_S)
    assert 0 < int(child.stdout) < len(ballast), child.stderr
    if sys.platform == "linux":
        del ballast
        reset_peak_rss()
        assert peak_rss_bytes() < with_ballast - 200_000_000
    assert read_record(first)["resources"]["peak_rss_bytes"] >= read_epochs(first)["rss_bytes"].max()
