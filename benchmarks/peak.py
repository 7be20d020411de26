"""Check the measured peak: no matrix product of a model's layers, run alone, should be faster than the probe.

    python benchmarks/peak.py                                        # MLP, batches of 32, 64, 256 and 1024
    python benchmarks/peak.py --model cnn --precision bf16-mixed --threads 1

Each linear layer has three products in a training step: forward, gradient of the input, gradient of the weights. Probe
and products alternate. The fastest of many repetitions counts, as in the probe. Printed: each product's rate as a
fraction of the median probe, the largest last.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.targets import build
from laptime.machine.device import resolve as resolve_device
from laptime.measure.peak import DTYPES, probe
from laptime.ranks.rank import Rank


def products(network: nn.Module, batch_size: int) -> dict[tuple[int, int, int], str]:
    """Layer and kind of each product of a training step, by its shape (rows, inner, columns)."""
    names = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            num_out, num_in = layer.out_features, layer.in_features
            names[batch_size, num_in, num_out] = f"{name} forward"
            names[batch_size, num_out, num_in] = f"{name} gradient of the input"
            names[num_out, batch_size, num_in] = f"{name} gradient of the weights"
    return names


def rate(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float = 0.05) -> float:
    """FLOP/s of the fastest repetition."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * rows * inner * columns / fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64, 256, 1024])
    parser.add_argument("--precision", default="32-true", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = resolve_device("cpu", "cpu"), DTYPES[arguments.precision]
    with hydra_session() as hydra:
        config = resolve(without_hydra(compose(hydra, [f"model={arguments.model}"])))
    network = build("model", config.model, input_shape=(1, 28, 28), num_classes=10)
    shapes = {shape: name for size in arguments.batch_sizes for shape, name in products(network, size).items()}
    peaks: list[float] = []
    rates: dict[tuple[int, int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(arguments.rounds):
        peaks.append(probe(device, arguments.precision, Rank()).matmul_flop_per_s)
        for shape in shapes:
            rates[shape].append(rate(shape, dtype))
    peak = statistics.median(peaks)
    print(f"peak {peak / 1e9:.1f} GFLOP/s ({min(peaks) / 1e9:.1f} to {max(peaks) / 1e9:.1f} in {len(peaks)} probes)")
    medians = {shape: statistics.median(values) for shape, values in rates.items()}
    for shape, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{' x '.join(map(str, shape)):>18}  {median / peak:6.1%}  {shapes[shape]}")


if __name__ == "__main__":
    main()
