"""Ranks that torchrun has started.

Most tests start the ranks themselves, with the store and the variables that torchrun gives them
(tests.support.elastic). One starts torchrun, and more do in the soak. Two hosts are in test_two_hosts.py.
"""

import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.support import processes
from tests.support.elastic import Agent
from tests.support.processes import DEADLINE_S, TRAIN, until
from tests.support.settings import TINY

from laptime.errors import UserError
from laptime.machine.device import usable_cores
from laptime.ranks import torchrun
from laptime.ranks.failures import RankFailed
from laptime.record.files import read_epochs, read_record
from laptime.runner import rank_process

QUICK = [*TINY, "training.epochs=2"]
RUN_DIR = Path("run")
CURVE = ["epoch", "rank", "train_loss", "val_loss"]


def start_torchrun(*arguments: str, options: tuple[str, ...] = (), ranks: int = 2, **how: Any) -> Any:
    """Start torchrun on this machine; its store uses a free port."""
    words = ["--standalone", "--nproc-per-node", str(ranks), *options, str(TRAIN), *arguments]
    return processes.start(*words, module="torch.distributed.run", **how)


def curve(run_dir: Path) -> list[list[float]]:
    rows: list[list[float]] = read_epochs(run_dir)[CURVE].to_numpy().tolist()
    return rows


def without_world_size(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("strategy.world_size")]


def end(ranks: list[Any]) -> tuple[list[int | None], list[str]]:
    """Exit codes and stderr of ranks that end by themselves."""
    errors = [rank.communicate()[1] for rank in ranks]
    return [rank.returncode for rank in ranks], errors


@pytest.fixture
def agent(start):
    """agent(nodes=(2,)): an Agent that lives as long as the test."""
    agents: list[Agent] = []

    def make(nodes: tuple[int, ...] = (2,)) -> Agent:
        agents.append(Agent(start, nodes))
        return agents[-1]

    return make


@pytest.mark.soak
def test_ranks_of_torchrun_join(trained):
    process = start_torchrun(*QUICK, "measure.breakdown=true", "hydra.run.dir=run")
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    record = read_record(RUN_DIR)
    assert record["strategy"]["world_size"] == len(set(record["strategy"]["rank_pids"])) == 2
    communication = record["communication"]
    assert communication["share_min"] <= communication["share"] <= communication["share_max"]
    assert record["config"]["strategy"]["world_size"] == 2
    assert record["command"][:3] == ["torchrun", "--nproc-per-node", "2"] and record["command"][3].endswith("train.py")
    assert curve(RUN_DIR) == curve(trained(*QUICK, "strategy.world_size=2"))


@pytest.mark.soak
def test_a_killed_rank_is_named_and_a_restart_finds_the_checkpoint(agent, breaking, trained):
    overrides = [*without_world_size(breaking(1, 1, "kill", once=True)), *TINY, "hydra.run.dir=run"]
    pretended = agent()
    first, killed = pretended.launch(*overrides)
    assert killed.wait() == -signal.SIGKILL
    errors = first.communicate()[1]
    assert first.returncode == 1, errors
    codes, errors = end(pretended.launch(*overrides, attempt=1))
    assert codes == [0, 0], errors
    assert_restarted(trained)


def assert_restarted(trained: Any) -> None:
    """The first attempt failed and names rank 1, the second resumed, and the curve is that of an undisturbed run."""
    record = read_record(RUN_DIR)
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    assert record["attempts"][0]["error"]["rank"] == 1
    assert "rank 1 does not respond" in record["attempts"][0]["error"]["message"]
    assert curve(RUN_DIR) == curve(trained(*TINY, "strategy.world_size=2", "training.epochs=3"))


def test_ranks_of_one_torchrun_write_one_record(agent, trained, work_folder):
    codes, errors = end(agent().launch(*QUICK))
    assert codes == [0, 0], errors
    (path,) = work_folder.rglob("run.json")
    record = read_record(path.parent)
    assert record["status"] == "completed"
    assert record["strategy"]["world_size"] == len(set(record["strategy"]["rank_pids"])) == 2
    assert curve(path.parent) == curve(trained(*QUICK, "strategy.world_size=2"))


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_the_record_has_the_exception_of_a_rank(rank, agent, breaking):
    overrides = [*without_world_size(breaking(rank, 1, "raise")), *TINY, "hydra.run.dir=run"]
    codes, _ = end(agent().launch(*overrides))
    assert codes == [1, 1]
    record = read_record(RUN_DIR)
    assert record["status"] == "failed"
    assert "broken on purpose" in record["error"]["message"]
    assert "on_train_batch_end" in record["error"]["traceback"]
    assert set(read_epochs(RUN_DIR)["epoch"]) == {0}


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_the_others(victim, agent):
    ranks = agent().launch(*TINY, "training.epochs=1000000", "hydra.run.dir=run")
    until(has_trained, ranks[0])
    ranks[victim].kill()
    errors = ranks[1 - victim].communicate()[1]
    assert ranks[1 - victim].returncode == 1, errors
    assert_death_is_recorded(victim)


def has_trained() -> bool:
    """Whether an epoch is in epochs.csv and in run.json."""
    return len(read_epochs(RUN_DIR)) >= 2 and bool(read_record(RUN_DIR)["timing"]["total_train_s"])


def assert_death_is_recorded(victim: int) -> None:
    record = read_record(RUN_DIR)
    assert record["status"] == record["attempts"][0]["status"] == "failed"
    assert record["error"]["type"] == "RankDied" and record["error"]["rank"] == victim
    assert f"rank {victim} does not respond" in record["error"]["message"]
    assert record["timing"]["total_train_s"] > 0


def test_a_single_rank_is_a_plain_process_without_wrap_single_rank(agent):
    for name, wrap, backend in (("plain", "false", None), ("wrapped", "true", "gloo")):
        overrides = [*QUICK, f"strategy.wrap_single_rank={wrap}", f"hydra.run.dir={name}"]
        codes, errors = end(agent(nodes=(1,)).launch(*overrides))
        assert codes == [0], errors
        assert read_record(Path(name))["strategy"]["backend"] == backend


def test_nodes_started_with_different_settings_are_refused(agent, work_folder):
    more = {0: ["seed=1"], 1: ["seed=2", "training.epochs=3", "dataset.root=null"]}
    codes, errors = end(agent(nodes=(1, 1)).launch(*QUICK, more=more))
    assert 0 not in codes
    for error in errors:
        assert "training.epochs 2 on rank 0, 3 on rank 1; seed 1 on rank 0, 2 on rank 1" in error
        assert "same command" in error
    assert not list(work_folder.rglob("run.json"))


@pytest.mark.soak
def test_nodes_on_one_machine_share_its_cores(agent):
    cores = usable_cores()
    common = [override for override in QUICK if not override.startswith("strategy")]
    for number, (threads, expected) in enumerate({"auto": max(1, cores // 2), str(cores): cores}.items()):
        overrides = [*common, f"strategy.threads_per_rank={threads}", f"hydra.run.dir={number}"]
        codes, errors = end(agent(nodes=(1, 1)).launch(*overrides))
        assert codes == [0, 0], errors
        strategy = read_record(Path(str(number)))["strategy"]
        assert (strategy["num_nodes"], strategy["threads_per_rank"]) == (2, expected)
        assert strategy["oversubscribed"] == (2 * expected > cores)


@pytest.mark.soak
def test_a_node_that_does_not_join_ends_the_others(agent):
    codes, errors = end(agent(nodes=(1, 1)).launch(*QUICK, "strategy.timeout_s=8", more={1: ["model=none_such"]}))
    assert 0 not in codes
    assert "rank 1 did not join within strategy.timeout_s=8" in errors[0]
    assert "model=none_such: no such option" in errors[1]


MISTAKES = [
    (["strategy.world_size=4"], "strategy.world_size=4: torchrun has started 2 ranks"),
    (["strategy.max_restarts=1"], "strategy.max_restarts=1: only torchrun can restart"),
    (["strategy=single"], "strategy=single: torchrun has started 2 ranks"),
    (["--multirun"], "-m: not supported under torchrun"),
    (["model=mpl"], "model=mpl: no such option"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_are_reported_without_a_traceback(arguments, words, agent, work_folder):
    codes, errors = end(agent().launch(*QUICK, *arguments))
    assert codes == [2, 2]
    assert any(words in error for error in errors), errors
    assert not any("Traceback" in error for error in errors)
    assert not list(work_folder.rglob("run.json"))


# The tests below start torchrun itself.


@pytest.mark.soak
def test_torchrun_restarts_its_ranks_from_the_checkpoint(breaking, trained):
    overrides = [*without_world_size(breaking(1, 1, "kill", once=True)), *TINY]
    process = start_torchrun(*overrides, "hydra.run.dir=run", options=("--max-restarts", "1"))
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert_restarted(trained)


@pytest.fixture
def long_torchrun(work_folder: Path) -> Iterator[tuple[Any, list[psutil.Process]]]:
    """A torchrun of two ranks with a completed epoch in epochs.csv and in run.json, and all of its processes."""
    process = start_torchrun(*TINY, "training.epochs=1000000", "hydra.run.dir=run", new_session=True, real=True)
    family: list[psutil.Process] = []
    try:
        until(has_trained, process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        yield process, family
    finally:
        for member in family or [psutil.Process(process.pid)]:
            if member.is_running():
                member.kill()
        process.communicate(timeout=DEADLINE_S)


def assert_all_end(process: Any, family: list[psutil.Process]) -> None:
    process.wait(timeout=DEADLINE_S)
    assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("signum", "status", "words"),
    [(signal.SIGTERM, "interrupted", "SIGTERM"), (signal.SIGKILL, "failed", "launched the ranks has died")],
    ids=["SIGTERM", "SIGKILL"],
)
def test_the_end_of_torchrun_ends_its_ranks_and_is_recorded(signum, status, words, long_torchrun):
    process, family = long_torchrun
    process.send_signal(signum)
    assert_all_end(process, family)
    record = read_record(RUN_DIR)
    assert record["status"] == status
    assert words in record["error"]["message"]
    if signum == signal.SIGTERM:
        assert "training.checkpoint=run" in (RUN_DIR / "train.log").read_text()


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_of_torchrun_ends_the_others(victim, long_torchrun):
    process, family = long_torchrun
    os.kill(read_record(RUN_DIR)["strategy"]["rank_pids"][victim], signal.SIGKILL)
    assert_all_end(process, family)
    assert_death_is_recorded(victim)


@pytest.mark.soak
@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_torchrun_shows_mistakes_without_our_traceback(arguments, words, work_folder):
    process = start_torchrun(*QUICK, *arguments, real=True)
    errors = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode != 0
    assert words in errors
    package = str(Path(torchrun.__file__).parents[1])
    assert package not in errors, "no traceback has lines of this package"
    assert not list(work_folder.rglob("run.json"))


# The rendezvous: single functions.


@pytest.mark.unit
def test_the_rendezvous_reports_differing_settings(monkeypatch):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    here = threading.local()
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr(torchrun, "rank", lambda: here.rank)

    def meet(*configs: dict[str, Any], attempt: str) -> list[Any]:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        results: list[Any] = [None] * len(configs)

        def be(rank: int, config: dict[str, Any]) -> None:
            here.rank = rank
            try:
                results[rank] = torchrun.rendezvous(config, 4, 60)
            except UserError as error:
                results[rank] = str(error)

        threads = [threading.Thread(target=be, args=numbered, daemon=True) for numbered in enumerate(configs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return results

    first, second = meet({"seed": 1, "logger.save_dir": "a"}, {"seed": 1, "logger.save_dir": "b"}, attempt="0")
    assert first == second and [peer.usable_cores for peer in first] == [4, 4], "places may differ"
    for words in meet({"seed": 1}, {"seed": 2}, attempt="1"):
        assert "seed 1 on rank 0, 2 on rank 1" in words
    here.rank = 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    with pytest.raises(RankFailed, match=r"rank 1 did not join within strategy.timeout_s=0.2"):
        torchrun.rendezvous({"seed": 1}, 4, 0.2)


ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["192.0.2.7", "fe80::1%eth0"],
    "eth1": ["198.51.100.7", "fe80::2%eth1"],
}


@pytest.fixture
def sends_from(monkeypatch):
    """sends_from(address): the system sends from this address to any host; its interfaces are those of ADDRESSES."""
    faked = {name: [SimpleNamespace(address=ip) for ip in addresses] for name, addresses in ADDRESSES.items()}
    monkeypatch.setattr(rank_process.psutil, "net_if_addrs", lambda: faked)
    asked: list[Any] = []

    class Socket:
        def __init__(self, *kind: Any) -> None: ...

        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, *error: object) -> None: ...

        def connect(self, address: Any) -> None:
            asked.append(address)

        def getsockname(self) -> tuple[str, int]:
            return (answer, 9)

    answer = ""

    def fake(address: str) -> list[Any]:
        nonlocal answer
        answer = address
        monkeypatch.setattr(rank_process.socket, "socket", Socket)
        return asked

    return fake


@pytest.mark.unit
@pytest.mark.parametrize(
    ("address", "interface"),
    [("192.0.2.7", "eth0"), ("198.51.100.7", "eth1"), ("fe80::2%eth1", "eth1"), ("127.0.0.1", None), ("::1", None),
     ("203.0.113.1", None)],
)  # fmt: skip
def test_the_interface_is_the_one_with_the_address_that_the_system_sends_from(address, interface, sends_from):
    asked = sends_from(address)
    assert rank_process.interface_towards("198.51.100.1") == interface
    assert [request[0] for request in asked] == ["198.51.100.1"]


@pytest.mark.unit
def test_there_is_no_interface_to_a_machine_without_an_address(monkeypatch):
    def fails(*arguments: Any, **keywords: Any) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(rank_process.socket, "getaddrinfo", fails)
    assert rank_process.interface_towards("no.such.host.invalid") is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("nodes", "named", "used"),
    [("1", None, rank_process.LOOPBACK), ("2", None, "eth1"), ("1", "eth9", "eth9"), ("2", "eth9", "eth9")],
)
def test_ranks_use_the_named_interface_or_the_one_to_the_first_node(nodes, named, used, monkeypatch):
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    for name, value in {**dict.fromkeys(names, "1"), "GROUP_WORLD_SIZE": nodes}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named or "")
    if named is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(rank_process, "interface_towards", lambda host: "eth1")
    monkeypatch.setattr(torchrun, "store", lambda timeout_s: None)
    monkeypatch.setattr(rank_process.dist, "PrefixStore", lambda prefix, store: None)
    seen: list[str] = []
    monkeypatch.setattr(
        rank_process.dist,
        "init_process_group",
        lambda *arguments, **keywords: seen.append(os.environ["GLOO_SOCKET_IFNAME"]),
    )
    rank_process.join_torchrun("gloo", 60)
    assert seen == [used]
