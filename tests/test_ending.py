"""Runs that end otherwise than they were meant to, and runs that go on from them: real processes, real signals."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import laptime
from laptime.cli import main
from laptime.errors import TrainingFailed, UserError
from laptime.record import read_epochs, read_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
QUICK = ["dataset.limit=2000", "training.batch_size=32", "logger=none"]


def curve(*run_dirs: Path) -> list[tuple]:
    columns = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    return [row for run_dir in run_dirs for row in read_epochs(run_dir)[columns].itertuples(index=False, name=None)]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    """Wait for something on disk, however long the machine takes; a process that ended before fails the test."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def error_of(arguments: list[str], capfd) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capfd.readouterr().err


@pytest.mark.parametrize("more", [[], ["dataset.rotation_degrees=20", "dataset.horizontal_flip=true"]])
def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(more, work_folder):
    arguments = [*QUICK, *more, "scheduler.step_size=2"]
    laptime.run([*arguments, "training.epochs=4", "hydra.run.dir=whole"])
    laptime.run([*arguments, "training.epochs=2", "hydra.run.dir=first"])
    laptime.run([*arguments, "training.epochs=4", "hydra.run.dir=second", "training.checkpoint=first"])
    assert curve(Path("first"), Path("second")) == curve(Path("whole"))
    results = [read_record(Path(name))["result"]["test_loss"] for name in ("whole", "second")]
    assert results[0] == results[1]


def test_resumed_run_is_cold_again_and_warms_up(work_folder):
    laptime.run([*QUICK, "training.epochs=1"])
    record = laptime.run([*QUICK, "training.epochs=3", "training.checkpoint=latest"])
    epochs = read_epochs(Path(record["config"]["run_dir"]))
    assert list(epochs["epoch"]) == [1, 2]
    assert list(epochs["is_warmup"]) == [True, False]


def test_resuming_a_finished_run_says_what_to_do(work_folder, capfd):
    laptime.run([*QUICK, "training.epochs=1", "hydra.run.dir=first"])
    capfd.readouterr()
    message = error_of([*QUICK, "training.epochs=1", "training.checkpoint=first"], capfd)
    assert "has trained 1 epochs already" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=cnn", "model"),
        ("model.hidden_sizes=[64]", "hidden_sizes"),
        ("seed=7", "seed 1 there, 7 here"),
        ("optimizer.lr=0.01", "optimizer.lr 0.0005 there, 0.01 here"),
        ("dataset.val_fraction=0.4", "dataset.val_fraction 0.2 there, 0.4 here"),
        ("training.batch_size=64", "training.batch_size 32 there, 64 here"),
        ("strategy.world_size=2", "strategy.world_size 1 there, 2 here"),
    ],
)
def test_checkpoint_of_another_experiment_is_refused_with_the_difference(override, words, work_folder, capfd):
    laptime.run([*QUICK, "training.epochs=1", "hydra.run.dir=first"])
    capfd.readouterr()
    message = error_of([*QUICK, "training.epochs=2", "training.checkpoint=first", override], capfd)
    assert "another experiment" in message and words in message
    assert sorted(path.name for path in work_folder.iterdir()) == ["first"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_checkpoint_is_refused(content, work_folder, capfd):
    Path("broken.ckpt").write_bytes(content)
    assert "training.checkpoint=broken.ckpt: is damaged" in error_of([*QUICK, "training.checkpoint=broken.ckpt"], capfd)


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
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(damage, work_folder):
    laptime.run([*QUICK, "training.epochs=3", "scheduler.step_size=2", "hydra.run.dir=first"])
    laptime.run([*QUICK, "training.epochs=4", "scheduler.step_size=2", "hydra.run.dir=undisturbed"])
    last = Path("first/checkpoints/last.ckpt")
    if damage == "absent":
        last.unlink()
    else:
        last.write_bytes(DAMAGE[damage](last.read_bytes()))
    laptime.run(
        [*QUICK, "training.epochs=4", "scheduler.step_size=2", "hydra.run.dir=second", "training.checkpoint=first"]
    )
    assert "going on from the checkpoint before it" in Path("second/train.log").read_text()
    assert list(read_epochs(Path("second"))["epoch"]) == [2, 3]
    assert curve(Path("second")) == curve(Path("undisturbed"))[2:]


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_checkpoints_are_refused(damage, work_folder, capfd):
    laptime.run([*QUICK, "training.epochs=2", "hydra.run.dir=first"])
    capfd.readouterr()
    for name in ("last.ckpt", "previous.ckpt"):
        path = Path("first/checkpoints") / name
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    message = error_of([*QUICK, "training.epochs=3", "training.checkpoint=first"], capfd)
    assert "is damaged" in message and "Whole is first/checkpoints/best.ckpt: name that." in message
    assert sorted(path.name for path in work_folder.iterdir()) == ["first"]


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize(
    "save", [lambda value, path: torch.save(value, path), lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_checkpoint_never_runs_code(save, work_folder, capfd):
    save({"laptime": Malicious(), "loops": {}}, Path("evil.ckpt"))
    assert "is damaged or no checkpoint" in error_of([*QUICK, "training.checkpoint=evil.ckpt"], capfd)
    assert not Path("owned").exists()


def test_foreign_checkpoint_is_refused(work_folder, capfd):
    torch.save({"state_dict": {}}, "foreign.ckpt")
    assert "not written by Laptime" in error_of([*QUICK, "training.checkpoint=foreign.ckpt"], capfd)


def test_loss_that_turns_nan_fails_the_run_and_names_epoch_and_step(work_folder):
    with pytest.raises(TrainingFailed, match=r"in epoch 0, step \d+"):
        laptime.run([*QUICK, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=nan"])
    record = read_record(Path("nan"))
    assert record["status"] == "failed"
    assert record["error"]["epoch"] == 0
    assert record["error"]["step"] >= 1, "the first loss was finite"
    assert record["result"]["test_loss"] is None


def test_nan_in_the_command_exits_1_without_a_traceback(capfd):
    with pytest.raises(SystemExit) as end:
        main([*QUICK, "optimizer=sgd", "optimizer.lr=1e30"])
    assert end.value.code == 1
    captured = capfd.readouterr()
    assert "failed: the loss became" in captured.err and "Traceback" not in captured.err


def test_nan_step_is_the_same_whatever_the_grouping(work_folder):
    steps = set()
    for grouping in (1, 7, 16):
        with pytest.raises(TrainingFailed) as failure:
            laptime.run([*QUICK, "optimizer=sgd", "optimizer.lr=1e30", f"training.steps_per_execution={grouping}"])
        steps.add(failure.value.step)
    assert len(steps) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_keeps_what_was_measured_and_last_ckpt_resumes(signum, code, work_folder):
    run_dir = Path("stopped")
    process = start(*QUICK, "training.epochs=100000", f"hydra.run.dir={run_dir}")
    wait_for(lambda: len(read_epochs(run_dir)) >= 2, process)
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
    laptime.run([*QUICK, f"training.epochs={epochs + 1}", "hydra.run.dir=resumed", f"training.checkpoint={run_dir}"])
    laptime.run([*QUICK, f"training.epochs={epochs + 1}", "hydra.run.dir=whole"])
    assert curve(run_dir, Path("resumed")) == curve(Path("whole"))


def test_signal_in_the_first_epoch_can_be_resumed(work_folder):
    run_dir = Path("stopped")
    # An epoch long enough that the signal falls into it.
    data = ["dataset=synthetic", "dataset.shape=[1,4,4]", "dataset.num_train=3000000", "training.batch_size=32"]
    process = start(*data, "logger=none", f"hydra.run.dir={run_dir}")
    wait_for((run_dir / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert read_record(run_dir)["status"] == "interrupted"
    assert read_epochs(run_dir).empty
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 0


def test_signal_while_data_workers_run_leaves_none_behind(work_folder):
    import psutil

    process = start(*QUICK, "dataset.pipeline=workers", "training.epochs=100000", "hydra.run.dir=stopped")
    wait_for(lambda: len(read_epochs(Path("stopped"))) >= 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "no data workers"
    # As a terminal does: to the whole group.
    for each in [*children, psutil.Process(process.pid)]:
        each.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    psutil.wait_procs(children)
    assert read_record(Path("stopped"))["status"] == "interrupted"


def test_killed_run_leaves_readable_files_and_resumes(work_folder):
    process = start(*QUICK, "training.epochs=100000", "hydra.run.dir=killed")
    wait_for(lambda: len(read_epochs(Path("killed"))) >= 2, process)
    process.kill()
    process.communicate()
    record = read_record(Path("killed"))
    assert record["status"] == "running"
    assert record["strategy"]["rank_pids"] == [process.pid]
    checkpoint = torch.load("killed/checkpoints/last.ckpt", weights_only=True)
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    record = laptime.run([*QUICK, f"training.epochs={done + 1}", "training.checkpoint=killed"])
    assert record["status"] == "completed"


def test_error_while_training_is_recorded_with_its_traceback(work_folder, monkeypatch):
    from laptime.classifier import Classifier

    def broken(self, *arguments):
        raise RuntimeError("the network is broken")

    monkeypatch.setattr(Classifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="the network is broken"):
        laptime.run([*QUICK, "hydra.run.dir=broken"])
    record = json.loads(Path("broken/run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]["type"] == "RuntimeError"
    assert "the network is broken" in record["error"]["traceback"]


def test_interrupt_in_a_notebook_is_a_keyboard_interrupt(work_folder, monkeypatch):
    from laptime.callbacks.epoch_recorder import EpochRecorder

    real = EpochRecorder.on_train_epoch_end

    def then_ctrl_c(self, trainer, module):
        real(self, trainer, module)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EpochRecorder, "on_train_epoch_end", then_ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        laptime.run([*QUICK, "hydra.run.dir=stopped"])
    assert signal.getsignal(signal.SIGINT) is before
    assert len(read_epochs(Path("stopped"))) == 1
    assert read_record(Path("stopped"))["status"] == "interrupted"


def test_user_error_from_python_is_an_exception_and_leaves_nothing(work_folder):
    with pytest.raises(UserError, match="dataset=mnits"):
        laptime.run(["dataset=mnits"])
    assert list(work_folder.iterdir()) == []


def test_schedule_made_for_fewer_epochs_is_not_stretched(work_folder, capfd):
    laptime.run([*QUICK, "scheduler=cosine", "training.epochs=2", "hydra.run.dir=first"])
    capfd.readouterr()
    message = error_of([*QUICK, "scheduler=cosine", "training.epochs=4", "training.checkpoint=first"], capfd)
    assert "scheduler.T_max 2 there, 4 here" in message


def test_best_checkpoint_is_taken_along(work_folder):
    laptime.run([*QUICK, "training.epochs=2", "hydra.run.dir=first"])
    # Nothing gets better than the best so far when the first run's best is out of reach.
    checkpoint = torch.load("first/checkpoints/last.ckpt", weights_only=True)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "best_val_loss" in value]
    state["best_val_loss"] = 0.0
    torch.save(checkpoint, "first/checkpoints/last.ckpt")
    laptime.run([*QUICK, "training.epochs=3", "hydra.run.dir=second", "training.checkpoint=first"])
    assert Path("second/checkpoints/best.ckpt").read_bytes() == Path("first/checkpoints/best.ckpt").read_bytes()


def test_failure_is_in_the_log_with_its_time(work_folder):
    with pytest.raises(TrainingFailed):
        laptime.run([*QUICK, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=nan"])
    last = Path("nan/train.log").read_text().splitlines()[-1]
    assert last.startswith("[20") and "failed: the loss became" in last


def test_peak_memory_is_the_runs_own(work_folder):
    ballast = bytearray(os.urandom(1)) * 2_000_000_000
    done = subprocess.run(
        [sys.executable, str(TRAIN), *QUICK, "training.epochs=1", "hydra.run.dir=small"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_record(Path("small"))["resources"]["peak_rss_bytes"] < len(ballast)
    epochs = read_epochs(Path("small"))
    assert read_record(Path("small"))["resources"]["peak_rss_bytes"] >= epochs["rss_bytes"].max()
