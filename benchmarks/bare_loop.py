"""What Lightning and Laptime cost: an epoch of `python train.py` against a hand-written loop doing the same work.

    python benchmarks/bare_loop.py                                  # MLP and CNN on MNIST, batch 64, 9 rounds
    python benchmarks/bare_loop.py --models mlp --batch-sizes 32 64 --rounds 15

The same network, batches, optimizer and metrics; the two sides take turns in one process, each round trains one
uncounted epoch and then the counted ones. Printed: the median of the rounds' epoch times and of their ratios.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import laptime
from laptime.compose import compose, hydra_session, resolve, without_hydra
from laptime.record import read_epochs
from laptime.targets import build


def bare_epochs(config: dict, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> list[float]:
    """Train as a careful person would by hand: data in memory, one gather per batch, figures read once per epoch.

    Args:
        images: uint8, (N, 1, 28, 28).
        labels: int64, (N,).

    Returns:
        Seconds of each epoch.
    """
    torch.manual_seed(config["seed"])
    network = build("model", config["model"], input_shape=(1, 28, 28), num_classes=10)
    optimizer = build("optimizer", config["optimizer"], params=network.parameters())
    batch_size = config["training"]["batch_size"]
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        order = torch.randperm(len(labels))
        loss_sum, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for first in range(0, len(labels), batch_size):
            index = order[first : first + batch_size]
            x, y = images[index].float().div_(255).sub_(0.1307).div_(0.3081), labels[index]
            logits = network(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            hits += (logits.detach().argmax(1) == y).sum()
        assert 0 < float(loss_sum) / len(labels) < 3 and int(hits) > 0
        times.append(time.perf_counter() - start)
    return times


def laptime_epochs(overrides: list[str], epochs: int, folder: Path) -> list[float]:
    """Seconds of each epoch as Laptime records them."""
    with contextlib.redirect_stdout(io.StringIO()):
        laptime.run([*overrides, f"training.epochs={epochs}", f"hydra.run.dir={folder}"])
    return list(read_epochs(folder)["epoch_time_s"])


def compare(model: str, batch_size: int, arguments: argparse.Namespace) -> None:
    """Run both sides in turn, the order changing from round to round, and print one line."""
    overrides = [f"model={model}", f"training.batch_size={batch_size}", "device=cpu", "dataset.val_fraction=0"]
    overrides += [f"dataset.limit={arguments.limit}"]
    with hydra_session() as hydra:
        config = resolve(without_hydra(compose(hydra, overrides)))
    train = build("dataset", config["dataset"]).load()[0].take(slice(0, arguments.limit))
    epochs = arguments.epochs + 1
    bare: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def run_bare() -> None:
            bare.append(statistics.median(bare_epochs(config, train.images, train.labels, epochs)[1:]))

        def run_ours(number: int) -> None:
            ours.append(statistics.median(laptime_epochs(overrides, epochs, Path(folder) / str(number))[1:]))

        for number in range(arguments.rounds):
            if number % 2:
                run_ours(number)
                run_bare()
            else:
                run_bare()
                run_ours(number)
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    print(
        f"{model:6} {batch_size:5}  {statistics.median(bare):7.3f} s  {statistics.median(ours):7.3f} s  "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per round")
    parser.add_argument("--limit", type=int, default=20_000, help="training samples")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print(f"{'model':6} {'batch':>5}  {'bare':>9}  {'laptime':>9}  ratio (min to max of {arguments.rounds} rounds)")
    for model in arguments.models:
        for batch_size in arguments.batch_sizes:
            compare(model, batch_size, arguments)


if __name__ == "__main__":
    main()
