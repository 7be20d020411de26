"""Whether ranks can talk: two real ones on this machine meet as those of a run do, and add up a tensor."""

import math
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from laptime.doctor.finding import Finding, in_one_line
from laptime.machine.device import available_accelerator, describe
from laptime.ranks.rank import Rank
from laptime.runner import fresh_processes
from laptime.runner.rank_process import Rendezvous, join
from laptime.runner.supervise import rendezvous_store

_NUM_RANKS = 2
_OF_ACCELERATOR = {"cuda": "nccl", "xpu": "xccl"}


def check_backends() -> list[Finding]:
    """gloo, and the backend of the accelerator that is there."""
    if not dist.is_available():
        return [Finding("gloo", "not there", "this torch was built without torch.distributed")]
    accelerator = available_accelerator()
    found = [check("gloo", "cpu")]
    if accelerator in _OF_ACCELERATOR:
        backend, num_devices = _OF_ACCELERATOR[accelerator], torch.accelerator.device_count()
        if num_devices >= _NUM_RANKS:
            found.append(check(backend, accelerator))
        else:
            found.append(Finding(backend, "not there", f"{_NUM_RANKS} ranks need a device each; {num_devices} here"))
    return found


def check(backend: str, used: str, timeout_s: float = 60.0) -> Finding:
    """Let two fresh processes make a group and all-reduce; none of them is left afterwards.

    Args:
        backend: gloo, nccl or xccl.
        used: the device that the tensor lies on: cpu, cuda or xpu.
        timeout_s: for all of it, loading torch included.
    """
    if not dist.is_backend_available(backend):
        return Finding(backend, "not there", "this torch was built without it")
    deadline = time.monotonic() + timeout_s
    children = []
    try:
        with rendezvous_store("127.0.0.1", 0, backend, timeout_s) as rendezvous:
            for number in range(_NUM_RANKS):
                rank = Rank(rank=number, local_rank=number, core_slot=number, world_size=_NUM_RANKS)
                job = rank, rendezvous
                children.append(fresh_processes.start(partial(add_up, used), job, f"{backend} rank {number}"))
            answers = [_answer(connection, deadline) for _, connection in children]
    except Exception as error:
        return Finding(backend, "fails", in_one_line(error))
    finally:
        for process, connection in children:
            process.kill()
            process.join()
            connection.close()
    return judge(backend, answers, timeout_s)


def judge(backend: str, answers: Sequence[list[float] | str | None], timeout_s: float) -> Finding:
    """The verdict on what the ranks answered: the sums, an error's first line, or None for nothing at all."""
    for rank, answer in enumerate(answers):
        if isinstance(answer, str):
            return Finding(backend, "fails", f"rank {rank}: {answer}")
    if None in answers:
        return Finding(backend, "fails", f"rank {answers.index(None)} died or did not answer within {timeout_s:.0f} s")
    expected = [sum(column) for column in zip(*(_summand(rank).tolist() for rank in range(len(answers))), strict=True)]
    for rank, answer in enumerate(answers):
        if answer != expected:
            return Finding(backend, "computes something else", f"rank {rank} has {answer}, where {expected} is right")
    return Finding(backend, "works", f"{len(answers)} ranks on this machine added up a tensor")


def add_up(used: str, connection: Connection, job: tuple[Rank, Rendezvous]) -> None:
    """Be one of the ranks: join the group, all-reduce, and send what came out; ends the process."""
    rank, rendezvous = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that waits ends this one
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(rendezvous.timeout_s) + 1)  # and where that one was killed, nobody does
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # backends print of their own accord
        os.dup2(nowhere, descriptor)
    try:
        device = describe("auto", used, rank.local_rank)
        device.select()
        rank.apply_affinity()
        join(rank, rendezvous)
        values = _summand(rank.rank).to(device.torch_device)
        dist.all_reduce(values)
        connection.send(values.tolist())
    except Exception as error:
        connection.send(in_one_line(error))
    os._exit(0)  # as ranks of a run end: threads of the group can block Python's own shutdown


def _summand(rank: int) -> torch.Tensor:
    return torch.arange(1.0, 9.0) * (rank + 1)


def _answer(connection: Connection, deadline: float) -> list[float] | str | None:
    try:
        answer: list[float] | str | None = None
        if connection.poll(max(0.0, deadline - time.monotonic())):
            answer = connection.recv()
        return answer
    except (EOFError, OSError):
        return None
