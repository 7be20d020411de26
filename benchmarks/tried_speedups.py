"""Measure changes that were tried to make an epoch faster and helped little or not at all, against the default.

    python benchmarks/tried_speedups.py                                     # all of them, MLP on MNIST, 7 rounds
    python benchmarks/tried_speedups.py --only compile openmp --rounds 5

Every run is a process, `python train.py`, with one change. It alternates with the default. Printed: the ratio of
throughput as median, smallest and largest round.
"""

import argparse
from typing import NamedTuple

from ratios import SHORT, Comparison, Measured, add_arguments, alternate, report, require_speed, run_in_subprocess

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
SHARED = ["strategy.world_size=2", "strategy.comm_hook=shared_memory", "strategy.threads_per_rank=1"]


class Trial(NamedTuple):
    """A change, and what it is compared with.

    Attributes:
        title: description of the change.
        overrides: overrides of the changed side.
        environment: variables of the changed side.
        base: overrides of both sides.
    """

    title: str
    overrides: list[str]
    environment: dict[str, str] = {}
    base: list[str] = []


TRIALS = {
    "compile": Trial("torch.compile", ["training.compile=true"]),
    "threads": Trial("one thread instead of two", ["strategy.threads_per_rank=1"]),
    "openmp": Trial("OpenMP threads that sleep when they wait", [], {"OMP_WAIT_POLICY": "passive"}),
    "malloc": Trial("memory that is never given back to the system", [], MALLOC),
    "hugepages": Trial("huge pages for torch's memory", [], {"THP_MEM_ALLOC_ENABLE": "1"}),
    "bf16-matmul": Trial("matrix products in bfloat16", ["training.matmul_precision=medium"]),
    "one-step": Trial("a Lightning batch for every step", ["training.steps_per_execution=1"]),
    "64-steps": Trial("64 steps in a Lightning batch instead of 16", ["training.steps_per_execution=64"]),
    "unfused": Trial("Adam that is not fused", ["optimizer.fused=false"]),
    "fp16-hook": Trial("gradients in 16 bits over gloo", ["strategy.comm_hook=fp16"], base=SHARED[::2]),
    "powersgd": Trial("PowerSGD over gloo", ["strategy.comm_hook=powersgd"], base=SHARED[::2]),
    "whole": Trial("every rank updates all weights", ["strategy.shard_optimizer=false"], base=SHARED),
    "static-graph": Trial("DDP's static graph", ["strategy.static_graph=true"], base=SHARED),
    "no-pinning": Trial("ranks that are not pinned", ["strategy.pin_ranks=false"], base=SHARED),
}


def run(overrides: list[str], environment: dict[str, str], limit: int) -> Measured:
    (record,) = run_in_subprocess(
        *SHORT, "training.epochs=4", "dataset.val_fraction=0", f"dataset.limit={limit}", *overrides,
        environment=environment,
    )  # fmt: skip
    return require_speed(record)


def compare(name: str, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a trial."""
    trial = TRIALS[name]
    sides = {
        "default": lambda: run(trial.base, {}, arguments.limit),
        name: lambda: run([*trial.base, *trial.overrides], trial.environment, arguments.limit),
    }
    return alternate(trial.title, sides, {}, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=7)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--limit", type=int, default=24_000, help="training samples")
    arguments = parser.parse_args()
    report((compare(name, arguments) for name in arguments.only), "Speedups that were tried", arguments.plot)


if __name__ == "__main__":
    main()
