"""Compare the scaling of Laptime and of plain PyTorch DDP over gloo, from 1 to 2 ranks with one thread each.

    python benchmarks/plain_ddp.py                                       # MLP on MNIST; 32, 64, 256 and 1024 per rank
    python benchmarks/plain_ddp.py --batch-sizes 256 --rounds 9

Each round runs `python train.py -m strategy.world_size=1,2`, and the plain DDP training below with 1 and 2 ranks. Both
have the same data path, fused Adam, threads, cores and bucket size, and every rank is a new process. The scaling
efficiency is the throughput of 2 ranks over twice that of 1 rank. Printed: the medians of the rounds; Laptime's
efficiency over that of plain DDP; and the speed of 2 ranks relative to 1 without synchronization (`no_sync`, from
run.json).
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.targets import build
from laptime.data.augment import FlipAndRotate, Normalize
from laptime.data.image_data import split
from laptime.data.memory import MemoryPipeline
from laptime.data.order import EpochOrder
from laptime.models.mlp import MLP
from ratios import run_in_subprocess

EXTRA_EPOCHS = 1  # the first epoch is a warm-up on both sides


def plain_rank(rank: int, world_size: int, port: int, batch_size: int, epochs: int, results: Any) -> None:
    """Train with plain DDP. Rank 0 puts the samples per second of all ranks into `results`."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    torch.manual_seed(1)
    with hydra_session() as hydra:
        data = build("dataset", resolve(without_hydra(compose(hydra, []))).dataset)
    train, _ = split(data.load()[0], data.val_fraction, 1)
    order = EpochOrder(len(train), 1, rank, world_size)
    normalize = Normalize(data.mean, data.std, torch.device("cpu"))
    pipeline = MemoryPipeline(train, order, normalize, FlipAndRotate(False, 0), batch_size, 16)
    network: torch.nn.Module = MLP((1, 28, 28), 10, hidden_sizes=[512, 256], dropout=0.2)
    if world_size > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
        network = DistributedDataParallel(network, bucket_cap_mb=25)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0005, weight_decay=1e-4, fused=True)
    times = []
    for epoch in range(epochs + EXTRA_EPOCHS):
        order.set_epoch(epoch)
        if world_size > 1:
            dist.barrier()
        start = time.perf_counter()
        loss_sum, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for step_group in pipeline.step_groups():
            for images, labels in step_group:
                logits = network(images)
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach() * len(labels)
                hits += (logits.detach().argmax(1) == labels).sum()
        assert 0 < float(loss_sum) / len(order) < 3 and int(hits) > 0
        times.append(time.perf_counter() - start)
    if rank == 0:
        results.put(len(order) * world_size / statistics.median(times[EXTRA_EPOCHS:]))
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def plain(world_size: int, batch_size: int, epochs: int) -> float:
    """Train with plain DDP, and return the samples per second of all ranks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=plain_rank, args=(rank, world_size, port, batch_size, epochs, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    samples_per_s: float = results.get()
    return samples_per_s


def laptime_records(batch_size: int, epochs: int) -> dict[int, dict[str, Any]]:
    """The records of a Laptime sweep, by world size: 1 and 2."""
    records = run_in_subprocess(
        "-m", "strategy.world_size=1,2", "strategy.threads_per_rank=1", f"training.batch_size={batch_size}",
        f"training.epochs={epochs + EXTRA_EPOCHS}",
    )  # fmt: skip
    return {record["strategy"]["world_size"]: record for record in records}


def compare(batch_size: int, rounds: int, epochs: int) -> None:
    """Run both sides alternately, in an order that is reversed in every other round, and print one line."""
    rows = []
    for number in range(rounds):
        if number % 2:
            one, two = plain(1, batch_size, epochs), plain(2, batch_size, epochs)
            records = laptime_records(batch_size, epochs)
        else:
            records = laptime_records(batch_size, epochs)
            one, two = plain(1, batch_size, epochs), plain(2, batch_size, epochs)
        speeds = {world_size: record["timing"]["samples_per_s"] for world_size, record in records.items()}
        steps = {world_size: record["contention"]["no_sync_step_s"] for world_size, record in records.items()}
        efficiency, plain_efficiency = speeds[2] / speeds[1] / 2, two / one / 2
        ratio = efficiency / plain_efficiency
        rows.append((plain_efficiency, efficiency, ratio, speeds[2] / two, steps[1] / steps[2]))
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ratios = [row[2] for row in rows]
    print(
        f"{batch_size:5}  {medians[0]:7.3f}  {medians[1]:7.3f}  {medians[2]:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})  {medians[3]:14.3f}  {medians[4]:7.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64, 256, 1024], help="per rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs per run")
    arguments = parser.parse_args()
    print("scaling efficiency of 2 ranks; speed of 2 ranks; relative speed without synchronization")
    print(f"{'batch':>5}  {'plain':>7}  {'laptime':>7}  ratio (min to max)      laptime/plain  no_sync")
    for batch_size in arguments.batch_sizes:
        compare(batch_size, arguments.rounds, arguments.epochs)


if __name__ == "__main__":
    main()
