"""Checks communication between ranks: two real ranks on this machine all-reduce a tensor, as those of a run would."""

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
_BACKENDS = {"cuda": "nccl", "xpu": "xccl"}


def check_backends() -> list[Finding]:
    """Check gloo, and the backend of this machine's accelerator."""
    if not dist.is_available():
        return [Finding("gloo", "not available", "this torch was built without torch.distributed")]
    accelerator = available_accelerator()
    findings = [check("gloo", "cpu")]
    if accelerator in _BACKENDS:
        backend, num_devices = _BACKENDS[accelerator], torch.accelerator.device_count()
        if num_devices >= _NUM_RANKS:
            findings.append(check(backend, accelerator))
        else:
            findings.append(
                Finding(
                    backend, "not available", f"{_NUM_RANKS} ranks need one device each; this machine has {num_devices}"
                )
            )
    return findings


def check(backend: str, used: str, timeout_s: float = 60.0) -> Finding:
    """Start two processes, all-reduce a tensor between them, and wait for both to exit.

    Args:
        backend: gloo, nccl or xccl.
        used: the device of the tensor: cpu, cuda or xpu.
        timeout_s: time limit for the whole check, loading torch included.
    """
    if not dist.is_backend_available(backend):
        return Finding(backend, "not available", f"this torch was built without {backend}")
    deadline = time.monotonic() + timeout_s
    children = []
    try:
        with rendezvous_store("127.0.0.1", 0, backend, timeout_s) as rendezvous:
            for number in range(_NUM_RANKS):
                rank = Rank(rank=number, local_rank=number, core_slot=number, world_size=_NUM_RANKS)
                job = rank, rendezvous
                children.append(fresh_processes.start(partial(all_reduce, used), job, f"{backend} rank {number}"))
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
    """The verdict on the answers of the ranks: the sums, the first line of an error, or None for no answer."""
    for rank, answer in enumerate(answers):
        if isinstance(answer, str):
            return Finding(backend, "fails", f"rank {rank}: {answer}")
    if None in answers:
        return Finding(backend, "fails", f"rank {answers.index(None)} died or did not answer within {timeout_s:.0f} s")
    expected = [sum(column) for column in zip(*(_values(rank).tolist() for rank in range(len(answers))), strict=True)]
    for rank, answer in enumerate(answers):
        if answer != expected:
            return Finding(backend, "wrong results", f"rank {rank} has {answer} instead of {expected}")
    return Finding(backend, "works", f"{len(answers)} ranks on this machine all-reduced a tensor")


def all_reduce(used: str, connection: Connection, job: tuple[Rank, Rendezvous]) -> None:
    """The work of a rank: join the group, all-reduce, and send the sums. Ends the process."""
    rank, rendezvous = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(rendezvous.timeout_s) + 1)  # if the parent was killed
    null_device = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # hides what backends print
        os.dup2(null_device, descriptor)
    try:
        device = describe("auto", used, rank.local_rank)
        device.select()
        rank.apply_affinity()
        join(rank, rendezvous)
        values = _values(rank.rank).to(device.torch_device)
        dist.all_reduce(values)
        connection.send(values.tolist())
    except Exception as error:
        connection.send(in_one_line(error))
    os._exit(0)  # as in a run's ranks, because threads of the group can block Python's shutdown


def _values(rank: int) -> torch.Tensor:
    return torch.arange(1.0, 9.0) * (rank + 1)


def _answer(connection: Connection, deadline: float) -> list[float] | str | None:
    try:
        answer: list[float] | str | None = None
        if connection.poll(max(0.0, deadline - time.monotonic())):
            answer = connection.recv()
        return answer
    except (EOFError, OSError):
        return None
