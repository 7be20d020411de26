"""Ranks on two hosts: network namespaces with a loopback of their own and cables between them.

For the second host the first one's working folder is empty, as if it were on another disk.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.processes import DEADLINE_S, TRAIN, until
from tests.support.settings import TINY

from laptime.record.files import read_epochs, read_record

pytestmark = pytest.mark.soak

QUICK = [*TINY, "training.epochs=2"]
CURVE = ["epoch", "rank", "train_loss", "val_loss"]
STORE_PORT = 29511  # free: only this test listens in its network namespaces
# Two cables: the first leads to MASTER_ADDR, the second is used only if it is named.
CABLES = [
    "ip link add lta netns {0} type veth peer name ltb netns {1}",
    "ip -n {0} address add 10.77.0.1/24 dev lta",
    "ip -n {1} address add 10.77.0.2/24 dev ltb",
    "ip link add spare netns {0} type veth peer name spare netns {1}",
    "ip -n {0} address add 10.78.0.1/24 dev spare",
    "ip -n {1} address add 10.78.0.2/24 dev spare",
    *[f"ip -n {{0}} link set {device} up" for device in ("lo", "lta", "spare")],
    *[f"ip -n {{1}} link set {device} up" for device in ("lo", "ltb", "spare")],
]


def quietly(command: str) -> bool:
    return subprocess.run(command.split(), capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def hosts(work_folder: Path) -> Iterator[tuple[str, str]]:
    if not all(shutil.which(tool) for tool in ("ip", "unshare", "mount")):
        pytest.skip("needs ip, unshare and mount to make two hosts of one")
    names = (f"laptime-a-{os.getpid()}", f"laptime-b-{os.getpid()}")
    for number in (0, 1):
        (work_folder / f"disk {number}").mkdir()
    try:
        if not all(quietly(f"ip netns add {name}") for name in names):
            pytest.skip("may not make network namespaces here")
        if not all(quietly(command.format(*names)) for command in CABLES):
            pytest.skip("may not join network namespaces here")
        if not quietly(f"ip netns exec {names[0]} unshare --mount true"):
            pytest.skip("may not make mount namespaces here")
        yield names
    finally:
        for name in names:
            quietly(f"ip netns delete {name}")


@pytest.fixture
def start_on(hosts: tuple[str, str], work_folder: Path) -> Iterator[Any]:
    """start_on(arguments, options, environment): starts torchrun with one rank on each host; the test ends them all."""
    running: list[subprocess.Popen[str]] = []

    def start(
        arguments: Sequence[str], options: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> list[subprocess.Popen[str]]:
        for number, host in enumerate(hosts):
            disk, hidden = work_folder / f"disk {number}", work_folder / f"disk {1 - number}"
            rendezvous = ["--nnodes", "2", "--node-rank", str(number), "--master-addr", "10.77.0.1"]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *rendezvous]
            command = [*torchrun, "--master-port", str(STORE_PORT), *options, str(TRAIN), *arguments]
            script = 'mount -t tmpfs none "$1" && cd "$2" && shift 2 && exec "$@"'
            running.append(
                subprocess.Popen(
                    [
                        "ip",
                        "netns",
                        "exec",
                        host,
                        "unshare",
                        "--mount",
                        "sh",
                        "-c",
                        script,
                        "sh",
                        hidden,
                        disk,
                        *command,
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=(work_folder / f"stderr {number}").open("w"),
                    env=os.environ | (environment or {}),
                    text=True,
                )
            )
        return running[-2:]

    yield start
    for process in running:
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                if member.is_running():
                    member.kill()
            process.wait(timeout=DEADLINE_S)


def succeed(running: list[subprocess.Popen[str]]) -> None:
    codes = [process.wait(timeout=DEADLINE_S) for process in running]
    assert codes == [0, 0], "\n".join(Path(f"stderr {number}").read_text() for number in (0, 1))


def curve(run_dir: Path) -> list[list[float]]:
    rows: list[list[float]] = read_epochs(run_dir)[CURVE].to_numpy().tolist()
    return rows


def test_two_hosts_train_one_run(start_on, trained, work_folder):
    succeed(start_on([*QUICK, "hydra.run.dir=run"]))
    (path,) = work_folder.rglob("run.json")
    assert path.parent == work_folder / "disk 0" / "run"
    record = read_record(path.parent)
    assert record["strategy"]["num_nodes"] == record["strategy"]["world_size"] == 2
    assert len(set(record["strategy"]["rank_pids"])) == 2
    # Two ranks on one machine learn the same.
    assert curve(path.parent) == curve(trained(*QUICK, "strategy.world_size=2"))


def addresses_of(pid: int) -> set[str]:
    """This machine's addresses in the TCP sockets of a process, without those to the store."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    addresses = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            _, local, remote, *rest = line.split()
            ports = [int(endpoint.rpartition(":")[2], 16) for endpoint in (local, remote)]
            if rest[6] in inodes and STORE_PORT not in ports:
                words = bytes.fromhex(local.partition(":")[0])
                address = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                addresses.add(socket.inet_ntop(family, address).removeprefix("::ffff:"))
    return addresses


@pytest.mark.parametrize(
    ("named", "expected"), [({}, "10.77.0"), ({"GLOO_SOCKET_IFNAME": "spare"}, "10.78.0")], ids=["towards", "named"]
)
def test_ranks_use_the_named_interface_or_the_one_to_the_first_host(named, expected, start_on, work_folder):
    first, second = start_on([*TINY, "training.epochs=1000000", "hydra.run.dir=run"], environment=named)
    run_dir = work_folder / "disk 0" / "run"
    until(lambda: len(read_epochs(run_dir)) >= 2 or second.poll() is not None, first)
    pids = read_record(run_dir)["strategy"]["rank_pids"]
    assert [addresses_of(pid) for pid in pids] == [{f"{expected}.1"}, {f"{expected}.2"}]


def test_two_hosts_restart_from_the_checkpoint_of_the_first(start_on, breaking, trained, work_folder):
    overrides = [
        override for override in breaking(1, 1, "kill", once=True) if not override.startswith("strategy.world_size")
    ]
    succeed(start_on([*overrides, *TINY, "hydra.run.dir=run"], ["--max-restarts", "1"]))
    run_dir = work_folder / "disk 0" / "run"
    assert [attempt["status"] for attempt in read_record(run_dir)["attempts"]] == ["failed", "completed"]
    assert [row[:2] for row in curve(run_dir)] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert curve(run_dir) == curve(trained(*TINY, "strategy.world_size=2", "training.epochs=3"))


def test_two_hosts_resume_from_a_checkpoint_that_only_the_first_has(start_on, work_folder):
    succeed(start_on([*QUICK, "hydra.run.dir=run"]))
    succeed(start_on([*TINY, "training.epochs=3", "training.checkpoint=run", "hydra.run.dir=second"]))
    assert read_record(work_folder / "disk 0" / "second")["status"] == "completed"
    assert list(read_epochs(work_folder / "disk 0" / "second")["epoch"]) == [2, 2]
