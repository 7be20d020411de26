"""The planned ranks with their cores and devices, and what is refused. Accelerators are faked."""

import os

import pytest
from tests.support.configs import changed

from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.runner import fresh_processes, launch
from laptime.runner.rank_plan import backend_of, plan
from laptime.sweeps.core_slots import SweepCores

pytestmark = pytest.mark.unit


def planned(**strategy) -> list:
    sweep = strategy.pop("sweep", None)
    return plan(changed(device={"name": "cpu"}, strategy=strategy), sweep)


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr("laptime.runner.rank_plan.usable_cores", lambda: 4)
    monkeypatch.setattr("laptime.machine.device.usable_cores", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def test_cores_are_shared_among_the_ranks_of_a_single_run(four_cores):
    ranks = planned(world_size=2)
    assert [rank.threads for rank in ranks] == [2, 2]
    assert [rank.cores for rank in ranks] == [(0, 1), (2, 3)]
    assert not ranks[0].oversubscribed


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_in_a_sweep_threads_per_rank_follow_the_largest_run(four_cores, world_size):
    ranks = planned(world_size=world_size, sweep=SweepCores(largest_world_size=4).context())
    assert {rank.threads for rank in ranks} == {1}
    assert [rank.cores for rank in ranks] == [(number,) for number in range(world_size)]


def test_more_threads_than_cores_is_oversubscribed_and_not_pinned(four_cores):
    ranks = planned(world_size=3, threads_per_rank=2)
    assert {(rank.oversubscribed, rank.cores) for rank in ranks} == {(True, None)}


def test_a_single_run_of_one_rank_is_not_pinned(four_cores):
    (rank,) = planned()
    assert rank.threads == 4 and rank.cores is None


def test_ranks_are_not_pinned_under_a_cpu_quota(four_cores, monkeypatch):
    monkeypatch.setattr("laptime.runner.rank_plan.usable_cores", lambda: 2)
    assert {rank.cores for rank in planned(world_size=2)} == {None}


def test_pinning_can_be_disabled(four_cores):
    assert planned(world_size=2, pin_ranks=False)[0].cores is None


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("laptime.runner.rank_plan.available_accelerator", lambda: "cuda")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)


def config_for(device: str, **strategy) -> Config:
    return changed(device={"name": device}, strategy={"threads_per_rank": 1, "timeout_s": 5, **strategy})


@pytest.mark.parametrize(
    ("device", "world_size", "ranks"), [("cuda", 2, 2), ("auto", "auto", 2), ("cuda", "auto", 2), ("cpu", "auto", 1)]
)
def test_each_gpu_gets_one_rank(device, world_size, ranks, two_gpus):
    assert [rank.local_rank for rank in plan(config_for(device, world_size=world_size))] == list(range(ranks))


def test_more_ranks_than_gpus_is_refused(two_gpus, monkeypatch, work_folder):
    with pytest.raises(UserError, match=r"world_size=3: .*2 cuda devices.*CUDA_VISIBLE_DEVICES"):
        plan(config_for("cuda", world_size=3))
    assert len(plan(config_for("cpu", world_size=3))) == 3
    variables = {
        "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 3, "TORCHELASTIC_RUN_ID": "x", "RANK": 0, "LOCAL_RANK": 0,
        "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1,
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"world_size=6: .*2 cuda devices"):
        launch.launch(config_for("cuda"), work_folder, [])


@pytest.mark.parametrize(
    ("device", "accelerator", "backend"),
    [("auto", None, "gloo"), ("cpu", "cuda", "gloo"), ("auto", "cuda", "nccl"), ("mps", "cuda", "gloo"),
     ("xpu", "xpu", "xccl")],
)  # fmt: skip
def test_backend_follows_the_device(device, accelerator, backend, monkeypatch):
    monkeypatch.setattr("laptime.runner.rank_plan.available_accelerator", lambda: accelerator)
    assert backend_of(config_for(device)) == backend
    assert backend_of(config_for(device, backend="gloo")) == "gloo"


def test_world_size_auto_is_one_rank_per_gpu_or_one_on_the_cpu(monkeypatch):
    import torch

    from laptime.runner.rank_plan import num_ranks

    def ranks(device: str, world_size: int | str = "auto") -> int:
        return num_ranks(config_for(device, world_size=world_size))

    assert (ranks("auto"), ranks("cpu"), ranks("cuda"), ranks("cpu", 3)) == (1, 1, 1, 3)
    monkeypatch.setattr("laptime.runner.rank_plan.available_accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert (ranks("auto"), ranks("cpu"), ranks("cuda"), ranks("mps")) == (4, 1, 4, 1)


def test_on_macos_ranks_are_not_pinned(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr("laptime.runner.rank_plan.usable_cores", lambda: 4)
    assert {rank.cores for rank in planned(world_size=2)} == {None}


def test_off_linux_ranks_are_started_with_spawn(monkeypatch):
    monkeypatch.setattr("laptime.runner.fresh_processes.sys.platform", "darwin")
    assert fresh_processes.context().get_start_method() == "spawn"
