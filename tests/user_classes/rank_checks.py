"""Networks and callbacks that compare the state of ranks, or disturb their rendezvous."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from laptime.models.mlp import MLP
from laptime.ranks import rank as ranks
from laptime.ranks import shared_memory, stopping


def require_same(tensor: Tensor) -> None:
    """Fail if a tensor differs between ranks. A file in the current folder marks that it was compared."""
    tensors = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(tensors, tensor)
    assert all(torch.equal(other, tensors[0]) for other in tensors), tensors
    Path(f"compared by rank {dist.get_rank()}").touch()


class SameBatchNormStatistics(nn.Module):
    """A network that fails if the ranks evaluate with different statistics."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, **_: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(input_shape[0])
        self.out = nn.Linear(input_shape[1] * input_shape[2], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and dist.is_initialized():
            assert self.norm.running_mean is not None
            require_same(self.norm.running_mean)
        logits: Tensor = self.out(self.norm(images).flatten(1))
        return logits


class SameWeights(MLP):
    """A network that fails if the ranks evaluate with different weights."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and dist.is_initialized():
            for weight in self.parameters():
                require_same(weight.detach())
        return super().forward(images)


class WeightsOfSeveralTypes(nn.Module):
    """Weights of float32, float64 and bfloat16, one of them a single element, and some that aren't trained."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], 20)
        self.second = nn.Linear(20, num_classes, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu().double()
        return (self.second(hidden) * self.scale).float()


class EachRankOnItsOwnMachine(MLP):
    """A network that gives each process another machine id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared_memory._machine_id = lambda: f"machine of {os.getpid()}"


class StrangersConnect(MLP):
    """Connects strangers to the socket of each rank before the other ranks connect, and sends invalid data.

    A file in the current folder marks each stranger whose connection was closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        gather = ranks.Rank.gather

        def gather_and_disturb(rank: ranks.Rank, value: Any) -> list[Any]:
            values = gather(rank, value)
            if isinstance(value, tuple) and len(value) == 3:  # machine, socket and token: the ranks connect next
                for other_rank in range(rank.rank):
                    self.disturb(values[other_rank][1], f"stranger {rank.rank} at rank {other_rank} was turned away")
            return values

        ranks.Rank.gather = gather_and_disturb  # type: ignore[method-assign]

    def disturb(self, name: bytes, note: str) -> None:
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(name)
        stranger.sendall(b"\7\0\0\0" * 5)

        def wait_for_the_end() -> None:
            try:
                ended = stranger.recv(1) == b""
            except ConnectionError:
                ended = True
            if ended:
                Path(note).touch()

        threading.Thread(target=wait_for_the_end, daemon=True).start()


class OneClockRunsAhead(Callback):
    """Sets the clock of rank 1 two hours ahead in the second epoch's sixth step. Each rank writes its last step."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        Path(f"last step of rank {trainer.global_rank}").write_text(f"epoch {trainer.current_epoch} step {batch_idx}")
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (1, 1, 5):
            stopping.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 7200)  # type: ignore[assignment]


class DieWhileLauncherIsStopped(Callback):
    """Rank 1 suspends the launcher, the parent of the server of its ranks, and dies between two steps."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (1, 1, 0):
            psutil.Process().parent().parent().suspend()
            os.kill(os.getpid(), signal.SIGKILL)
