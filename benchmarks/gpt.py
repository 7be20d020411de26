"""Compare training the GPT in Laptime with a bare PyTorch loop, and with a loop written as nanoGPT's train.py is.

    python benchmarks/gpt.py                       # batch 12 and 64, 5 rounds
    python benchmarks/gpt.py --batch-sizes 12 --rounds 9
    python benchmarks/gpt.py --loss                # also: validation loss after 2,000 steps, 5 seeds of either side

The bare loop takes the same steps as Laptime, and its laps alternate with those of the run (`measure.bare_loop=true`).
The other loop draws random windows for each batch, sets the learning rate in the loop, and takes steps of AdamW that
isn't fused, as nanoGPT does on a CPU. Network, text, batch size, clipping and threads are those of Laptime. Validation
is in none of the times.

Source: A. Karpathy, nanoGPT (train.py), for the order of the steps in its loop and for its settings.
"""

import argparse
import logging
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from laptime.data.text import Text
from laptime.data.text_datamodule import TextDataModule
from laptime.evaluation.predict import mean_loss
from laptime.machine.device import describe
from laptime.models.gpt import GPT
from laptime.tasks.language_modeling import LanguageModeling
from ratios import Comparison, Measured, add_arguments, alternate, report, run_in_process

MOST_TIME, LEAST_THROUGHPUT = 1.03, 1.0
NUM_STEPS, NUM_WARMUP, LR, LOWEST_LR, CONTEXT = 2000, 100, 1e-3, 1e-4, 64


def laptime_run(batch_size: int, arguments: argparse.Namespace, *overrides: str) -> dict:
    """Train in Laptime: one lap that isn't counted, and the laps of a round. Return the record."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in_process(
            Path(folder), "task=language_modeling", "logger=none", "dataset.val_fraction=0",
            f"training.batch_size={batch_size}", f"training.lap_steps={arguments.steps}",
            f"training.max_steps={(arguments.laps + 1) * arguments.steps}",
            f"strategy.threads_per_rank={arguments.threads}", *overrides,
        )  # fmt: skip


def against_bare_loop(batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds against the bare loop, whose laps alternate with the run's."""
    ratios = []
    sides: dict[str, list[Measured]] = {"bare loop": [], "Laptime": []}
    for _ in range(arguments.rounds):
        record = laptime_run(batch_size, arguments, "measure.bare_loop=true")
        timing, bare_loop = record["timing"], record["bare_loop"]
        ratios.append(1 + bare_loop["overhead"])
        sides["Laptime"].append(Measured(timing["tokens_per_s"]))
        num_tokens = timing["tokens_per_s"] * timing["epoch_time_s"]
        sides["bare loop"].append(Measured(num_tokens / bare_loop["epoch_time_s"]))
    title = f"GPT on text, batch {batch_size}"
    return Comparison(title, sides, {"Laptime": MOST_TIME}, True, {"Laptime": ratios}, unit="tokens/s")


def against_usual_loop(batch_size: int, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds against the loop that is written as nanoGPT's."""
    sides = {
        "usual loop": lambda: UsualLoop(batch_size, 1, arguments.threads).tokens_per_s(arguments),
        "Laptime": lambda: Measured(laptime_run(batch_size, arguments)["timing"]["tokens_per_s"]),
    }
    title = f"GPT on text, batch {batch_size}, compared with a loop as nanoGPT's"
    comparison = alternate(title, sides, {"Laptime": LEAST_THROUGHPUT}, arguments.rounds)
    comparison.unit = "tokens/s"
    return comparison


class UsualLoop:
    """A training loop as nanoGPT's, on the same text, split and network as Laptime's."""

    def __init__(self, batch_size: int, seed: int, threads: int, val_fraction: float = 0.0) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        source = Text(
            path=None, context_length=CONTEXT, val_fraction=val_fraction, limit=None, pipeline="memory"
        )  # fmt: skip
        self.data = TextDataModule(source, describe("cpu", "cpu"), batch_size, 64, 1, seed)
        tokens, _ = source.load()
        num_held_out = round(0.1 * len(tokens))
        num_held_out += round(val_fraction * (len(tokens) - num_held_out))
        self.tokens = tokens[: len(tokens) - num_held_out]
        self.batch_size = batch_size
        self.network = GPT(len(source.vocabulary), CONTEXT, num_layers=4, num_heads=4, width=128, dropout=0.0)
        weights = list(self.network.parameters())
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": 0.1},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99))
        self.num_done = 0

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(self.tokens) - CONTEXT, (self.batch_size,)).tolist()
        inputs = torch.stack([self.tokens[start : start + CONTEXT].long() for start in starts])
        targets = torch.stack([self.tokens[start + 1 : start + 1 + CONTEXT].long() for start in starts])
        return inputs, targets

    def lr(self) -> float:
        if self.num_done < NUM_WARMUP:
            return LR * (self.num_done + 1) / (NUM_WARMUP + 1)
        done = min(1.0, (self.num_done - NUM_WARMUP) / (NUM_STEPS - NUM_WARMUP))
        return LOWEST_LR + 0.5 * (1 + math.cos(math.pi * done)) * (LR - LOWEST_LR)

    def steps(self, num_steps: int) -> None:
        self.network.train()
        inputs, targets = self.batch()
        for number in range(num_steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr()
            logits = self.network(inputs)
            loss = nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
            inputs, targets = self.batch()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.num_done += 1
            if number % 10 == 0:
                loss.item()

    def tokens_per_s(self, arguments: argparse.Namespace) -> Measured:
        """The throughput of the median lap, after one lap that isn't counted."""
        times = []
        for _ in range(arguments.laps + 1):
            start = time.perf_counter()
            self.steps(arguments.steps)
            times.append(time.perf_counter() - start)
        return Measured(arguments.steps * self.batch_size * CONTEXT / statistics.median(times[1:]))

    def val_loss(self) -> float:
        return mean_loss(self.network.eval(), self.data.val_dataloader(), LanguageModeling().loss)


def compare_losses(seeds: int, threads: int) -> None:
    """Print the validation losses after 2,000 steps of both sides, seed by seed."""
    losses: dict[str, list[float]] = {"usual loop": [], "Laptime": []}
    for seed in range(1, seeds + 1):
        usual = UsualLoop(12, seed, threads, val_fraction=0.1)
        usual.steps(NUM_STEPS)
        losses["usual loop"].append(usual.val_loss())
        with tempfile.TemporaryDirectory() as folder:
            record = run_in_process(
                Path(folder), "task=language_modeling", "logger=none", f"seed={seed}",
                f"strategy.threads_per_rank={threads}", f"training.lap_steps={NUM_STEPS}",
            )  # fmt: skip
        losses["Laptime"].append(record["result"]["val_loss"])
        print(f"seed {seed}: " + ", ".join(f"{side} {values[-1]:.4f}" for side, values in losses.items()), flush=True)
    for side, values in losses.items():
        print(f"  {side:10}  mean {statistics.fmean(values):.4f}, {min(values):.4f} to {max(values):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[12, 64])
    add_arguments(parser)
    parser.add_argument("--laps", type=int, default=3, help="counted laps per round and side")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a lap")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loss", action="store_true", help="also compare losses after 2,000 steps: half an hour")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of --loss")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    comparisons = (
        compare(batch_size, arguments)
        for batch_size in arguments.batch_sizes
        for compare in (against_bare_loop, against_usual_loop)
    )
    report(comparisons, "The GPT in Laptime and in plain loops", arguments.plot)
    if arguments.loss:
        compare_losses(arguments.seeds, arguments.threads)


if __name__ == "__main__":
    main()
