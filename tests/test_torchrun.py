"""Ranks that torchrun has started: on one machine, and on two hosts that are network namespaces joined by a cable."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import laptime
from laptime.device import usable_cores
from laptime.record import read_epochs, read_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
QUICK = [
    "dataset.limit=2000", "training.epochs=2", "training.batch_size=32", "logger=none", "device=cpu",
    "strategy.threads_per_rank=1",  # other numbers of threads sum in other orders
]  # fmt: skip
RUN_DIR = Path("run")
CURVE = ["epoch", "rank", "train_loss", "val_loss"]


def torchrun(*arguments: str, ranks: int = 2, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, str(ranks), *options, str(TRAIN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def curve(run_dir: Path) -> list[list[float]]:
    rows: list[list[float]] = read_epochs(run_dir)[CURVE].to_numpy().tolist()
    return rows


def test_ranks_that_exist_are_joined_with_one_record(work_folder):
    done = torchrun(*QUICK)
    assert done.returncode == 0, done.stderr
    (path,) = work_folder.rglob("run.json")
    record = read_record(path.parent)
    assert record["status"] == "completed"
    assert record["strategy"]["world_size"] == len(set(record["strategy"]["rank_pids"])) == 2
    communication = record["communication"]
    assert communication["share_min"] <= communication["share"] <= communication["share_max"]
    assert record["config"]["strategy"]["world_size"] == 2
    assert record["command"][:3] == ["torchrun", "--nproc-per-node", "2"] and record["command"][3].endswith("train.py")
    laptime.run([*QUICK, "strategy.world_size=2", "hydra.run.dir=ours"])
    assert curve(path.parent) == curve(Path("ours"))


def test_its_own_restart_finds_the_run_and_its_checkpoint(breaking):
    arguments = [each for each in breaking(1, 1, "kill", once=True) if not each.startswith("strategy.world_size")]
    done = torchrun(*arguments, "hydra.run.dir=run", options=("--max-restarts", "1"))
    assert done.returncode == 0, done.stderr
    record = read_record(RUN_DIR)
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    assert record["attempts"][0]["error"]["rank"] == 1
    laptime.run([*breaking(1, 1, "kill", once=True), "hydra.run.dir=whole"])
    assert curve(RUN_DIR) == curve(Path("whole"))


@pytest.mark.parametrize("rank", [0, 1])
def test_exception_in_a_rank_is_in_the_record_of_all(rank, breaking):
    arguments = [each for each in breaking(rank, 1, "raise") if not each.startswith("strategy.world_size")]
    done = torchrun(*arguments, "hydra.run.dir=run")
    assert done.returncode == 1
    record = read_record(RUN_DIR)
    assert record["status"] == "failed"
    assert "broken on purpose" in record["error"]["message"]
    assert "on_train_batch_end" in record["error"]["traceback"]
    assert set(read_epochs(RUN_DIR)["epoch"]) == {0}


@pytest.fixture
def long_run() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A torchrun of two ranks with a completed epoch in epochs.csv and in run.json, and all of its processes."""
    arguments = [*QUICK, "training.epochs=100000", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [*TORCHRUN, "2", str(TRAIN), *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(read_epochs(RUN_DIR)) < 2 or not read_record(RUN_DIR)["timing"]["total_train_s"]:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    own = psutil.Process(process.pid)
    family = [own, *own.children(recursive=True)]
    yield process, family
    for each in family:
        if each.is_running():
            each.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("signum", "status", "words"),
    [(signal.SIGTERM, "interrupted", "SIGTERM"), (signal.SIGKILL, "failed", "launched the ranks is gone")],
    ids=["SIGTERM", "SIGKILL"],
)
def test_end_of_torchrun_ends_its_ranks_and_the_record_says_so(signum, status, words, long_run):
    process, family = long_run
    process.send_signal(signum)
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left
    record = read_record(RUN_DIR)
    assert record["status"] == status
    assert words in record["error"]["message"]
    if signum == signal.SIGTERM:
        assert "training.checkpoint=run goes on from the last whole epoch" in (RUN_DIR / "train.log").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_the_others(victim, long_run):
    _, family = long_run
    os.kill(read_record(RUN_DIR)["strategy"]["rank_pids"][victim], signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left
    record = read_record(RUN_DIR)
    assert record["status"] == record["attempts"][0]["status"] == "failed"
    assert record["error"]["type"] == "RankDied" and record["error"]["rank"] == victim
    assert f"rank {victim} no longer answers" in record["error"]["message"]
    assert record["timing"]["total_train_s"] > 0


def test_one_rank_is_a_plain_process_unless_ddp_is_asked_for(work_folder):
    for name, wrap, backend in (("plain", "false", None), ("wrapped", "true", "gloo")):
        done = torchrun(*QUICK, f"strategy.wrap_single_rank={wrap}", f"hydra.run.dir={name}", ranks=1)
        assert done.returncode == 0, done.stderr
        assert read_record(Path(name))["strategy"]["backend"] == backend


def two_nodes(first: list[str], second: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Two torchruns of a rank each on this machine, with arguments of their own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank"]
    running = [
        subprocess.Popen(
            [*TORCHRUN, "1", *node, str(number), str(TRAIN), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, arguments in enumerate((first, second))
    ]
    ended = [process.communicate(timeout=300) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(running, ended, strict=True)
    ]


def test_nodes_started_with_different_settings_are_refused(work_folder):
    nodes = two_nodes([*QUICK, "seed=1"], [*QUICK, "seed=2", "training.epochs=3", "dataset.root=null"])
    for node in nodes:
        assert node.returncode != 0
        assert "training.epochs 2 on rank 0, 3 on rank 1; seed 1 on rank 0, 2 on rank 1" in node.stderr
        assert "same command" in node.stderr
    assert not list(work_folder.rglob("run.json"))


def test_nodes_on_one_machine_share_its_cores(work_folder):
    cores = usable_cores()
    own = [each for each in QUICK if not each.startswith("strategy")]
    for number, (threads, expected) in enumerate({"auto": max(1, cores // 2), str(cores): cores}.items()):
        arguments = [*own, f"strategy.threads_per_rank={threads}", f"hydra.run.dir={number}"]
        nodes = two_nodes(arguments, arguments)
        assert [node.returncode for node in nodes] == [0, 0], nodes
        strategy = read_record(Path(str(number)))["strategy"]
        assert (strategy["num_nodes"], strategy["threads_per_rank"]) == (2, expected)
        assert strategy["oversubscribed"] == (2 * expected > cores)


def test_nodes_one_of_which_does_not_come_end_by_themselves(work_folder):
    nodes = two_nodes([*QUICK, "strategy.timeout_s=15"], [*QUICK, "model=none_such"])
    assert all(node.returncode != 0 for node in nodes)
    assert "rank 1 did not come within strategy.timeout_s=15" in nodes[0].stderr
    assert "model=none_such: no such option" in nodes[1].stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["strategy.world_size=4"], "strategy.world_size=4: torchrun has started 2 ranks"),
        (["strategy.max_restarts=1"], "strategy.max_restarts=1: the ranks that torchrun has started are started again"),
        (["strategy=single"], "strategy=single: torchrun has started 2 ranks"),
        (["--multirun"], "-m: torchrun's ranks belong to one run"),
        (["model=mpl"], "model=mpl: no such option"),
    ],
)
def test_mistakes_are_named_without_a_traceback_of_ours(arguments, words, work_folder):
    done = torchrun(*QUICK, *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "laptime/" not in done.stderr.replace(str(TRAIN), "")
    assert not list(work_folder.rglob("run.json"))


# Two hosts: network namespaces with a loopback of their own and one cable between them; for the second one the first
# one's working folder is empty, as if it were on another disk.
CABLE = [
    "ip link add lta netns {0} type veth peer name ltb netns {1}",
    "ip -n {0} address add 10.77.0.1/24 dev lta",
    "ip -n {1} address add 10.77.0.2/24 dev ltb",
    "ip -n {0} link set lo up",
    "ip -n {1} link set lo up",
    "ip -n {0} link set lta up",
    "ip -n {1} link set ltb up",
]


def quietly(command: str) -> bool:
    return subprocess.run(command.split(), capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    if not all(shutil.which(tool) for tool in ("ip", "unshare", "mount")):
        pytest.skip("needs ip, unshare and mount to make two hosts of one")
    names = (f"laptime-a-{os.getpid()}", f"laptime-b-{os.getpid()}")
    try:
        if not all(quietly(f"ip netns add {name}") for name in names):
            pytest.skip("may not make network namespaces here")
        if not all(quietly(command.format(*names)) for command in CABLE):
            pytest.skip("may not join network namespaces here")
        if not quietly(f"ip netns exec {names[0]} unshare --mount true"):
            pytest.skip("may not make mount namespaces here")
        yield names
    finally:
        for name in names:
            quietly(f"ip netns delete {name}")


def train_on(hosts: tuple[str, str], folder: Path, options: list[str], arguments: list[str]) -> list[str]:
    """Start torchrun on both hosts and wait; what each wrote to stderr, after both have succeeded."""
    running = []
    for number, host in enumerate(hosts):
        own = folder / f"disk {number}"
        own.mkdir(exist_ok=True)
        hidden = folder / f"disk {1 - number}"
        rendezvous = ["--nnodes", "2", "--node-rank", str(number), "--master-addr", "10.77.0.1"]
        command = [*TORCHRUN, "1", *rendezvous, "--master-port", "29511", *options, str(TRAIN), *arguments]
        script = 'mount -t tmpfs none "$1" && cd "$2" && shift 2 && exec "$@"'
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, "unshare", "--mount", "sh", "-c", script, "sh", hidden, own, *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        (folder / f"disk {1 - number}").mkdir(exist_ok=True)
    errors = []
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.communicate()
    return errors


@pytest.mark.slow
def test_two_hosts_train_one_run(hosts, work_folder):
    for number in (0, 1):
        (work_folder / f"disk {number}").mkdir()
    train_on(hosts, work_folder, [], [*QUICK, "hydra.run.dir=run"])
    (path,) = work_folder.rglob("run.json")
    assert path.parent == work_folder / "disk 0" / "run"
    record = read_record(path.parent)
    assert record["strategy"]["num_nodes"] == record["strategy"]["world_size"] == 2
    assert len(set(record["strategy"]["rank_pids"])) == 2
    # The same ranks on one machine learn the same.
    laptime.run([*QUICK, "strategy.world_size=2", "hydra.run.dir=ours"])
    assert curve(path.parent) == curve(Path("ours"))


@pytest.mark.slow
def test_two_hosts_start_again_from_the_first_ones_checkpoint(hosts, breaking, work_folder):
    arguments = [each for each in breaking(1, 1, "kill", once=True) if not each.startswith("strategy.world_size")]
    for number in (0, 1):
        (work_folder / f"disk {number}").mkdir()
    arguments = [*arguments, "hydra.run.dir=run", "strategy.threads_per_rank=1"]
    train_on(hosts, work_folder, ["--max-restarts", "1"], arguments)
    run_dir = work_folder / "disk 0" / "run"
    assert read_record(run_dir)["attempts"][-1]["status"] == "completed"
    assert [row[:2] for row in curve(run_dir)] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    laptime.run([*breaking(1, 9, "kill"), "hydra.run.dir=whole", "strategy.threads_per_rank=1"])
    assert curve(run_dir) == curve(Path("whole"))


@pytest.mark.slow
def test_two_hosts_go_on_from_a_checkpoint_that_the_first_one_has(hosts, work_folder):
    for number in (0, 1):
        (work_folder / f"disk {number}").mkdir()
    train_on(hosts, work_folder, [], [*QUICK, "hydra.run.dir=run"])
    longer = [each for each in QUICK if not each.startswith("training.epochs")]
    train_on(hosts, work_folder, [], [*longer, "training.epochs=3", "training.checkpoint=run", "hydra.run.dir=second"])
    record = json.loads((work_folder / "disk 0" / "second" / "run.json").read_text())
    assert record["status"] == "completed"
    assert list(read_epochs(work_folder / "disk 0" / "second")["epoch"]) == [2, 2]
