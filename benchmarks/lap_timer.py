"""Measure LapTimer in a user's own training: its cost, the accuracy of its laps, and the accuracy of its FLOPs.

    python benchmarks/lap_timer.py                      # all of them, ten minutes
    python benchmarks/lap_timer.py cost --rounds 15     # thread CPU time per step, and the ratio of the whole training
    python benchmarks/lap_timer.py agreement            # laps against a manual clock in the same run
    python benchmarks/lap_timer.py flops                # FLOPs against formulas

cost        The same training without LapTimer, with an empty callback and with LapTimer, one after the other, on one
            thread. Its steps compute almost nothing, so the extra CPU time of a step is LapTimer's own. For comparison,
            a typical step is that of an MLP on images of 28 x 28, batch 64, with a logged loss.
agreement   A manual clock in the training that LapTimer times: from the request for the first batch to the end of the
            last optimizer step, without the validation.
flops       Laptime's CNN, and a GPT: 6N + 12LHQT per token, N without position embeddings, weights tied
            (Chowdhery et al. 2022, PaLM, appendix B).
"""

import argparse
import contextlib
import io
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import laptime
from laptime.lap.flops import FlopCounter
from laptime.models.cnn import CNN
from laptime.record.files import read_epochs

CPU_GOAL_S, FRACTION_GOAL, AGREEMENT_GOAL, FLOPS_GOAL = 20e-6, 0.005, 0.005, 0.01


class LitClassifier(pl.LightningModule):
    """Classifies vectors, and times its own epochs for comparison with LapTimer.

    Attributes:
        laps_s: per epoch, from the request for the first batch to the end of the last optimizer step, no validation.
        thread_s: CPU seconds of the main thread per batch, in each epoch.
        validation_s: seconds of validation in the current epoch.
    """

    def __init__(self, sizes: list[int], logs: bool) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.net = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
        self.logs = logs
        self.laps_s: list[float] = []
        self.thread_s: list[float] = []
        self.validation_s = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        if self.logs:
            self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/loss", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.last_step_at = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.thread_start_s = time.thread_time()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.trainer.num_training_batches - 2:  # the work at the end of a lap does not count
            self.thread_s.append((time.thread_time() - self.thread_start_s) / (batch_idx - 1))


class ClockedLoader(DataLoader):  # type: ignore[type-arg]
    """Records the time of the request for its first batch."""

    def __iter__(self) -> Any:
        self.requested_at = time.perf_counter()
        return super().__iter__()


class ManualClock(Callback):
    """Computes the laps from the times of loader and optimizer, and subtracts the validation."""

    def __init__(self) -> None:
        self.started_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = trainer.fit_loop.epoch_loop.val_loop.run  # type: ignore[attr-defined]

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = run(*args, **kwargs)
            pl_module.validation_s += time.perf_counter() - start  # type: ignore[operator]
            return result

        trainer.fit_loop.epoch_loop.val_loop.run = timed  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.validation_s = 0.0  # type: ignore[assignment]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer, pl_module)

    def _end(self, trainer: pl.Trainer, module: Any) -> None:
        if len(module.laps_s) == trainer.current_epoch:
            requested_at = trainer.train_dataloader.requested_at  # type: ignore[union-attr]
            module.laps_s.append(module.last_step_at - requested_at - module.validation_s)


def data(num: int, width: int, batch_size: int, kind: type[DataLoader] = DataLoader) -> DataLoader:  # type: ignore[type-arg]
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(num, width, generator=generator), torch.randint(0, 10, (num,), generator=generator)
    return kind(TensorDataset(x, y), batch_size=batch_size)


def fit(
    module: LitClassifier, loader: Any, folder: str, timer: Any = None, callbacks: Any = (), **settings: Any
) -> float:
    """Train, and return the seconds of `trainer.fit`."""
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, default_root_dir=folder,
        callbacks=[*callbacks, *([timer] if timer is not None else [])], **settings,
    )  # fmt: skip
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        validates = "val_check_interval" in settings
        trainer.fit(module, loader, data(640, loader.dataset.tensors[0].shape[1], 64) if validates else None)
    return time.perf_counter() - start


def interval(values: list[float]) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, (9999, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def cost(rounds: int) -> bool:
    torch.set_num_threads(1)
    small_s, _ = _sides(rounds, [4, 10], 4, 400, logs=False)
    timer_s = [timed - empty for empty, timed in zip(small_s["empty"], small_s["timed"], strict=True)]
    with_call_s = [timed - without for without, timed in zip(small_s["without"], small_s["timed"], strict=True)]
    typical_s, typical_fit_s = _sides(rounds, [784, 512, 256, 10], 64, 100, logs=True)
    step_s = statistics.median(typical_s["without"])
    fraction = statistics.median(timer_s) / step_s
    ratios = [timed / without for without, timed in zip(typical_fit_s["without"], typical_fit_s["timed"], strict=True)]
    is_cheap, is_small = statistics.median(timer_s) <= CPU_GOAL_S, fraction <= FRACTION_GOAL
    print(f"{rounds} rounds, medians, 95% intervals")
    print(f"LapTimer's thread CPU time per step: {_us(timer_s)}: {_verdict(is_cheap)}")
    print(f"including Lightning's call of a callback: {_us(with_call_s)}")
    print(f"fraction of a typical step of {1e3 * step_s:.2f} ms: {fraction:.2%}: {_verdict(is_small)}")
    low, high = interval(ratios)
    print(f"the typical training takes {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}) times as long")
    return is_cheap and is_small


def _sides(rounds: int, sizes: list[int], batch_size: int, num_batches: int, logs: bool) -> Any:
    """Train all sides alternately.

    Returns:
        By side, one value per round: thread seconds per step of the fastest epoch, since disturbances only add time;
        and seconds of `fit`.
    """
    loader = data(batch_size * num_batches, sizes[0], batch_size)
    step_s: dict[str, list[float]] = {"without": [], "empty": [], "timed": []}
    fit_s: dict[str, list[float]] = {side: [] for side in step_s}
    for number in range(rounds):
        for side in list(step_s) if number % 2 else reversed(step_s):
            with tempfile.TemporaryDirectory() as folder:
                module = LitClassifier(sizes, logs)
                timer = laptime.LapTimer(dir=f"{folder}/run", peak=False) if side == "timed" else None
                seconds = fit(module, loader, folder, timer, [Callback()] if side == "empty" else [], max_epochs=10)
                step_s[side].append(min(module.thread_s[1:]))
                fit_s[side].append(seconds)
    return step_s, fit_s


def _us(values: list[float]) -> str:
    low, high = interval(values)
    return f"{1e6 * statistics.median(values):.1f} us ({1e6 * low:.1f} to {1e6 * high:.1f})"


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def agreement(rounds: int) -> bool:
    met = True
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "validation in the middle": {"val_check_interval": 0.3},
        "accumulation of 4": {"accumulate_grad_batches": 4},
        "DDP with 2 ranks": {"devices": 2, "strategy": "ddp_spawn"},
    }
    for name, settings in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            module, clock = LitClassifier([784, 512, 256, 10], True), ManualClock()
            loader = data(64 * 400, 784, 64, ClockedLoader)
            timer = laptime.LapTimer(dir=f"{folder}/run", peak=False)
            if "devices" in settings:
                clock = WritingClock(folder)
            fit(module, loader, folder, timer, [clock], max_epochs=4, **settings)
            laps = read_epochs(Path(folder) / "run").query("rank == 0")["epoch_time_s"].tolist()
            manual = WritingClock.read(folder) if "devices" in settings else module.laps_s
        errors = [abs(lap / expected - 1) for lap, expected in zip(laps[1:], manual[1:], strict=True)]
        is_met = max(errors) <= AGREEMENT_GOAL
        met &= is_met
        print(f"{name}: laps differ from the manual clock by at most {max(errors):.3%}: {_verdict(is_met)}")
    return met


class WritingClock(ManualClock):
    """Writes the laps of rank 0, which is another process, to a file."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            Path(self.folder, "laps.txt").write_text(" ".join(map(repr, pl_module.laps_s)))

    @staticmethod
    def read(folder: str) -> list[float]:
        return [float(text) for text in Path(folder, "laps.txt").read_text().split()]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for projection in self.qkv(self.norm1(x)).split(width, 2)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, layers: int, heads: int, width: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def flops() -> bool:
    met = True
    for layers, heads, width, context in ((4, 4, 128, 64), (6, 6, 384, 256)):
        net, tokens = GPT(65, layers, heads, width, context), torch.randint(0, 65, (4, context))
        with FlopCounter() as counter:
            nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()
        num_parameters = sum(weight.numel() for weight in net.parameters()) - net.positions.weight.numel()
        expected = 6 * num_parameters + 12 * layers * width * context
        title = f"GPT with {layers} layers of width {width}"
        met &= _compare_flops(title, counter.total / tokens.numel(), expected, "token")
    cnn = CNN(input_shape=(1, 28, 28), num_classes=10, channels=[32, 64], hidden_sizes=[128], dropout=0.0)
    images = torch.randn(8, 1, 28, 28)
    with FlopCounter() as counter:
        cnn(images).sum().backward()
    return met & _compare_flops("CNN", counter.total / len(images), _cnn_formula(cnn), "sample")


def _cnn_formula(cnn: nn.Module) -> int:
    """FLOPs of convolutions and linear layers: forward 2 x outputs x inputs per output; backward twice that.

    The first layer computes no gradient of its input, so its backward pass counts once.
    """
    total, is_first, sizes = 0, True, {}
    for name, layer in cnn.named_modules():
        layer.register_forward_hook(lambda layer, x, y, name=name: sizes.__setitem__(name, y))
    cnn(torch.randn(1, 1, 28, 28))
    for name, layer in cnn.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            forward = 2 * sizes[name].numel() * layer.weight[0].numel()
            total += forward * (2 if is_first else 3)
            is_first = False
    return total


def _compare_flops(title: str, counted: float, expected: float, unit: str) -> bool:
    ratio = counted / expected
    is_met = abs(ratio - 1) <= FLOPS_GOAL
    print(f"{title}: {counted:,.0f} FLOPs per {unit}, formula {expected:,.0f}: ratio {ratio:.4f}: {_verdict(is_met)}")
    return is_met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["cost", "agreement", "flops", []], default=[])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "laptime"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parts = {"cost": lambda: cost(arguments.rounds), "agreement": lambda: agreement(arguments.rounds), "flops": flops}
    # A list, so that all of them run even if the first one misses its goal.
    met = [parts[name]() for name in arguments.parts or ["flops", "agreement", "cost"]]
    if not all(met):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
