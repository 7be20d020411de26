"""Callbacks as users write them: one counts hooks, one has a state, one stops the run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import torch
from pytorch_lightning.callbacks import Callback

STATES = {
    "number of NumPy's": lambda: numpy.float64(1.5),
    "path": lambda: Path("x"),
    "function": lambda: lambda: 1,
    "plain": lambda: [1, 2.5, None, {"a": True}],
}


class CountHooks(Callback):
    """Counts the hooks that observe the expected state, and writes the counts to counts<rank>.json."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.counts["start"] += 1
        self.weights = [weight.clone() for weight in module.network.parameters()]

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        self.counts["loss"] += bool(loss.requires_grad)

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.counts["backward"] += any(bool(weight.grad.any()) for weight in module.network.parameters())
        norm = torch.stack([weight.grad.norm() for weight in module.network.parameters()]).norm()
        module.log("gradient_norm", norm, on_step=False, on_epoch=True)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        weights = zip(self.weights, module.network.parameters(), strict=True)
        self.counts["before_step"] += all(torch.equal(old, new) for old, new in weights)

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        weights = zip(self.weights, module.network.parameters(), strict=True)
        self.counts["after_step"] += any(not torch.equal(old, new) for old, new in weights)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.counts["end"] += len(batch)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        norm = float(trainer.callback_metrics["gradient_norm"])
        Path(f"counts{trainer.global_rank}.json").write_text(json.dumps({**self.counts, "norm": norm}))


class KeepState(Callback):
    """Adds one of STATES to the checkpoint, and writes the state that it gets back to a file."""

    def __init__(self, what: str) -> None:
        self.what = what

    def state_dict(self) -> dict[str, Any]:
        return {"state": STATES[self.what]()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        Path("given_back").write_text(repr(state["state"]))


class StopAfterEpoch(Callback):
    """Asks Lightning to stop after the first epoch."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = True
