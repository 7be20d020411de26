"""`task=own` in processes: ranks, signals, restarts, torchrun and sweeps."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.own_task import OWN, TWO_RANKS, losses
from tests.support.settings import NO_REPORT

from laptime.record.files import read_epochs, read_record


@pytest.mark.soak
@pytest.mark.parametrize("batch", [2, 7])
def test_two_ranks_stop_at_a_signal_and_resume(batch, start):
    whole = [*OWN, TWO_RANKS, "training.epochs=4", "task.data.batch_size=4"]
    signal_at = f"+callbacks.stops={{_target_: signal_at.SignalAt, signum: {signal.SIGTERM}, epoch: 2, batch: {batch}}}"
    assert processes.run(*whole, "hydra.run.dir=whole").returncode == 0
    stopped = processes.run(*whole, signal_at, "hydra.run.dir=stopped")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert read_record(Path("stopped"))["status"] == "interrupted"
    resumed = processes.run(*whole, "training.checkpoint=stopped", "hydra.run.dir=rest")
    assert resumed.returncode == 0, resumed.stderr
    assert losses("stopped") + losses("rest") == losses("whole")


@pytest.mark.soak
def test_ranks_restart_after_one_dies(breaking):
    breaks = breaking(rank=1, epoch=2, how="kill", once=True)[-1]
    done = processes.run(*OWN, TWO_RANKS, "training.epochs=4", breaks, "strategy.max_restarts=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert processes.run(*OWN, TWO_RANKS, "training.epochs=4", "hydra.run.dir=whole").returncode == 0
    record = read_record(Path("run"))
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    last_of_epoch = read_epochs(Path("run")).query("rank == 0").groupby("epoch").last()
    assert list(last_of_epoch["train_loss"]) == [loss for loss, _ in losses("whole")]


@pytest.mark.soak
def test_a_time_limit_stops_two_ranks_after_the_same_step():
    limit = ["training.epochs=100000", "training.time_limit_s=3", TWO_RANKS]
    done = processes.run(*OWN, *limit, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = read_record(Path("run"))
    assert record["result"]["stop_reason"] == "time_limit" and record["result"]["test_loss"] is not None


@pytest.mark.soak
def test_shuffled_epochs_differ_and_are_split(trained):
    run_dir = trained(
        *OWN, TWO_RANKS, "training.epochs=2", "task.module._target_=own_modules.NotesSamples", "task.data.num=128",
        "measure.breakdown=true",
    )  # fmt: skip
    record = read_record(run_dir)
    assert record["communication"]["bytes_per_step"] == 4 * record["model"]["num_parameters"]
    samples = [json.loads((run_dir / f"samples-{rank}.json").read_text()) for rank in (0, 1)]
    for of_rank_0, of_rank_1 in zip(*samples, strict=True):
        assert sorted(of_rank_0 + of_rank_1) == list(range(128))
    assert samples[0][0] != samples[0][1]  # set_epoch was called


@pytest.mark.soak
def test_two_optimizers_on_two_ranks_learn_the_same_as_on_one(trained):
    common = [*OWN, "task.module._target_=own_modules.TwoOptimizers", "training.epochs=6", "task.data.num=16"]
    one = trained(*common, "task.data.batch_size=16")
    two = trained(*common, "task.data.batch_size=8", TWO_RANKS)
    assert [val for _, val in losses(two)] == pytest.approx([val for _, val in losses(one)], rel=1e-5)


@pytest.mark.soak
def test_networks_that_take_turns_learn_on_two_ranks(trained):
    turns = [*OWN, TWO_RANKS, "task.module._target_=own_modules.TakingTurns", "training.epochs=6"]
    refused = processes.run(*turns, "hydra.run.dir=run")
    assert refused.returncode == 1 and "strategy.find_unused_parameters=true" in refused.stderr
    run_dir = trained(*turns, "strategy.find_unused_parameters=true")
    assert losses(run_dir)[-1][1] < losses(run_dir)[0][1]


@pytest.mark.soak
@pytest.mark.parametrize("hook", ["bf16", "powersgd", "shared_memory"])
def test_communication_hooks_work(hook, trained):
    run_dir = trained(*OWN, TWO_RANKS, f"strategy.comm_hook={hook}", "training.epochs=3")
    assert losses(run_dir)[-1][1] < losses(run_dir)[0][1]


@pytest.mark.soak
def test_torchrun_starts_the_ranks():
    command = [*OWN, "training.epochs=2", "hydra.run.dir=run", "task.data.num_workers=1"]
    words = ["--standalone", "--nproc-per-node", "2", str(processes.TRAIN), *command]
    done = processes.run(*words, module="torch.distributed.run")
    assert done.returncode == 0, done.stderr
    assert read_record(Path("run"))["strategy"]["world_size"] == 2


@pytest.mark.soak
def test_a_sweep_over_ranks_and_widths_is_reported_and_resumed():
    sweep = ["-m", *OWN, "training.epochs=2", "strategy.world_size=1,2", "task.module.width=4,8"]
    done = processes.run(*sweep, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    report = Path("sweep/summary/report.md").read_text()
    assert "width" in report
    shutil.rmtree("sweep/3")
    again = processes.run(*sweep, "sweep.resume=sweep", NO_REPORT)
    assert again.returncode == 0, again.stderr
    assert (Path("sweep/3") / "run.json").is_file()
