"""Print parameters, FLOPs, throughput and accuracy of each model as a Markdown table.

    python benchmarks/models.py                                          # all of them, 10,000 MNIST images, 3 epochs
    python benchmarks/models.py --only vit lstm --epochs 10 --rounds 3
    python benchmarks/models.py --only resnet18 --limit 60000 training.precision=bf16-mixed

Each round is a process, `python train.py model=...`, with the default optimizer and its own seed. The accuracy is that
on the test set. `--limit` applies to the training images, of which `dataset.val_fraction` is held back for validation,
and to the test images. The first epoch is a warm-up, unless it is the only one. FLOPs are those of a sample's forward
and backward pass. The table has medians of the rounds, with the smallest and largest.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from ratios import SHORT, run_in_subprocess

MODELS = (
    "logistic_regression", "mlp", "cnn", "lstm", "transformer", "vit", "timm", "torchvision", "efficientnet_b0",
    "resnet18",
)  # fmt: skip
HEADER = "| model | parameters | FLOPs per sample | samples/s | test accuracy |\n|---|---|---|---|---|"


def row(model: str, records: Sequence[dict[str, Any]]) -> str:
    """A row of the table, from the records of all rounds."""
    first = records[0]["model"]
    speeds = [record["timing"]["samples_per_s"] for record in records]
    accuracies = [100 * record["result"]["test_accuracy"] for record in records]
    return (
        f"| `{model}` | {first['num_parameters']:,} | {first['flops_per_sample'] / 1e6:,.2f} M "
        f"| {medians(speeds, '{:,.0f}')} | {medians(accuracies, '{:.2f}%')} |"
    )


def medians(values: Sequence[float], form: str) -> str:
    """Median with smallest and largest, `97.1% (96.9% to 97.3%)`; a single value without them."""
    text = form.format(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--limit", type=int, default=10_000, help="number of training and validation images, and of test images"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="overrides for all models, e.g. training.precision=bf16-mixed")
    arguments = parser.parse_intermixed_args()
    print(HEADER, flush=True)
    for model in arguments.only:
        records: list[dict[str, Any]] = []
        for seed in range(1, arguments.rounds + 1):
            records += run_in_subprocess(
                *SHORT, f"model={model}", f"seed={seed}", f"dataset.limit={arguments.limit}",
                f"training.epochs={arguments.epochs}", *arguments.overrides,
            )  # fmt: skip
        print(row(model, records), flush=True)


if __name__ == "__main__":
    main()
