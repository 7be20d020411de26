"""Compare Laptime with the scripts that it replaces: plain PyTorch, written in the common way.

    python benchmarks/replaced_script.py                                  # MLP on MNIST, CNN on images like CIFAR-10's
    python benchmarks/replaced_script.py --cases mlp --rounds 9 --plot docs/figures/replaced_script.svg

The script has a Dataset of PIL images with torchvision's transforms, a DataLoader with two workers and plain Adam, and
reads the loss and the number of correct answers after every step. Laptime has the same network, samples, batch size,
threads, augmentation and settings of Adam, in float32 and in bf16-mixed, which the script doesn't use. Each round runs
every side in a new process. The first epoch of each is a warm-up and not counted. An epoch lasts from the request for
its first batch to the end of its last step. In the script it includes the start of the workers, which the DataLoader
creates again for every epoch. Printed: the median throughput, its ratio as median, smallest and largest round, and the
losses of the last epoch. The networks must have learned, for which the CNN needs about 20,000 samples.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.targets import build
from laptime.models.cnn import CNN
from ratios import (
    Comparison,
    Measured,
    add_arguments,
    add_epoch_arguments,
    alternate,
    in_fresh_process,
    report,
    require_learning,
    run_laptime,
)

LEARNING_RATE, WEIGHT_DECAY = 0.0005, 1e-4  # Laptime's default, conf/optimizer/adam.yaml


@dataclass(frozen=True)
class Case:
    """What both sides train.

    Attributes:
        title: title of the comparison.
        overrides: Laptime's overrides for network and data.
        num_samples: number of samples per epoch.
        goals: smallest ratio, by side.
        augmentation: the script's augmentation; `overrides` set the same in Laptime.
    """

    title: str
    overrides: tuple[str, ...]
    num_samples: int
    goals: dict[str, float]
    augmentation: list[nn.Module] = field(default_factory=list)


CASES = {
    "mlp": Case("MLP on MNIST", ("model=mlp", "dataset=mnist"), 60_000, {"Laptime": 4}),
    "cnn": Case(
        "CNN on images like CIFAR-10's, flipped and rotated",
        (
            "model=cnn", "dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.num_test=1000",
            "dataset.horizontal_flip=true", "dataset.rotation_degrees=15",
        ),
        10_000,
        {"Laptime": 1.7, "Laptime, bf16-mixed": 3.3},
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15, interpolation=transforms.InterpolationMode.BILINEAR),
        ],
    ),
}  # fmt: skip


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Single images, as torchvision's CIFAR10 returns them.

    Args:
        images: uint8, (N, H, W) or (N, H, W, 3).
        labels: N class indices.
        transform: converts a PIL image to a tensor.
    """

    def __init__(self, images: np.ndarray, labels: list[int], transform: transforms.Compose) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image), self.labels[index]


def network_and_images(
    overrides: Sequence[str], num_samples: int, augmentation: Sequence[nn.Module] = ()
) -> tuple[nn.Module, Dataset[tuple[torch.Tensor, int]]]:
    """The network and the first training images of a Laptime run with these overrides."""
    with hydra_session() as hydra:
        config: dict[str, Any] = resolve(without_hydra(compose(hydra, list(overrides))))
    data = build("dataset", config["dataset"])
    train = data.load()[0].take(slice(0, num_samples))
    network = build("model", config["model"], input_shape=data.image_shape, num_classes=data.num_classes)
    channels = data.image_shape[0]
    mean, std = (value * channels if len(value) == 1 else value for value in (data.mean, data.std))
    transform = transforms.Compose([*augmentation, transforms.ToTensor(), transforms.Normalize(mean, std)])
    if data.name == "mnist":  # torchvision's class reads the files that Laptime has unpacked
        return network, Subset(MNIST(str(data.folder()), transform=transform), range(num_samples))
    images = train.images.permute(0, 2, 3, 1).contiguous().numpy()
    return network, PilImages(images, train.labels.tolist(), transform)


def run_script(name: str, arguments: argparse.Namespace) -> Measured:
    """Train with the plain script."""
    case, device = CASES[name], torch.device("cpu")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    network, dataset = network_and_images(case.overrides, num_samples(case, arguments), case.augmentation)
    if isinstance(network, CNN):
        network = common_layer_order(network)
    loader = DataLoader(dataset, batch_size=arguments.batch_size, shuffle=True, num_workers=2)
    network.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    times = []
    for _ in range(arguments.epochs + 1):
        network.train()
        running_loss, correct, total = 0.0, 0, 0
        start = time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = network(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * labels.size(0)
            correct += (outputs.argmax(1) == labels).sum().item()
            total += labels.size(0)
        times.append(time.perf_counter() - start)
        assert total == len(dataset) and correct > 0
    return require_learning(Measured(total / statistics.median(times[1:]), running_loss / total))


def common_layer_order(network: CNN) -> nn.Module:
    """The same layers in the common order, ReLU before pooling. Laptime's faster order is one of its optimizations."""
    features: list[nn.Module] = []
    for layer in network.features:
        is_late = isinstance(layer, nn.ReLU) and isinstance(features[-1], nn.MaxPool2d)
        features.insert(len(features) - is_late, layer)
    return nn.Sequential(*features, network.classifier)


def num_samples(case: Case, arguments: argparse.Namespace) -> int:
    return arguments.limit or case.num_samples


def compare(name: str, arguments: argparse.Namespace) -> Comparison:
    """Run all rounds of a case."""
    case = CASES[name]
    overrides = [
        *case.overrides, f"dataset.limit={num_samples(case, arguments)}", f"training.epochs={arguments.epochs + 1}",
        f"training.batch_size={arguments.batch_size}", f"strategy.threads_per_rank={arguments.threads}",
    ]  # fmt: skip
    sides = {
        "script": lambda: in_fresh_process(run_script, name, arguments),
        "Laptime": lambda: in_fresh_process(run_laptime, overrides),
        "Laptime, bf16-mixed": lambda: in_fresh_process(run_laptime, [*overrides, "training.precision=bf16-mixed"]),
    }
    return alternate(f"{case.title}, batch {arguments.batch_size}", sides, case.goals, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    add_epoch_arguments(parser, None, "training samples; default: 60,000 (mlp), 10,000 (cnn)")
    arguments = parser.parse_args()
    comparisons = (compare(name, arguments) for name in arguments.cases)
    report(comparisons, "Laptime and the scripts that it replaces", arguments.plot)


if __name__ == "__main__":
    main()
