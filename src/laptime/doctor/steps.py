"""Checks whether a device trains correctly: compares the losses of a few steps of a tiny network with a reference.

The reference is the same steps in float64 on the CPU. float64 runs through other code than float32 (oneDNN has no
float64), so this detects a faulty CPU too, and a faulty CPU does not make other devices look faulty.
"""

import torch
from torch import nn

from laptime.doctor.finding import Finding, in_one_line
from laptime.errors import UserError
from laptime.machine.device import Device, available_accelerator, check_precision, describe

# Maximum relative difference of a loss. Correct devices differ by 1e-7 in float32, 4e-4 with TF32 (which torch allows
# in NVIDIA's convolutions) and 4e-3 in bfloat16. Gradients that are 10% off make a difference of 7e-2.
TOLERANCES = {"32-true": 2e-3, "bf16-mixed": 2e-2}
_NUM_STEPS = 5


def check_devices() -> list[Finding]:
    """Check the CPU and every accelerator that torch finds, in each precision of `TOLERANCES`."""
    devices = [("cpu", 0)]
    accelerator = available_accelerator()
    if accelerator is not None:
        devices += [(accelerator, index) for index in range(torch.accelerator.device_count())]
    return [check(used, index, precision) for used, index in devices for precision in TOLERANCES]


def check(used: str, index: int, precision: str) -> Finding:
    """Train on one device and compare the losses.

    Args:
        used: cpu, mps, cuda or xpu.
        index: the device's index, if there are several.
        precision: a key of `TOLERANCES`.
    """
    name = "cpu" if used == "cpu" else f"{used}:{index}"
    try:
        device = describe("auto", used, index)
        check_precision(precision, device)
        actual, expected = losses(device, precision), losses(describe("auto", "cpu"), "64-true")
    except UserError as refusal:
        return Finding(name, "not available", str(refusal).partition(": ")[2], precision)
    except Exception as error:  # any error of a driver is a result of this check
        return Finding(name, "fails", in_one_line(error), precision)
    return compare(name, precision, actual, expected)


def compare(name: str, precision: str, actual: list[float], expected: list[float]) -> Finding:
    """The verdict on the losses of a few steps."""
    tolerance = TOLERANCES[precision]
    differences = [abs(loss - reference) / abs(reference) for loss, reference in zip(actual, expected, strict=True)]
    if all(difference <= tolerance for difference in differences):  # false for NaN
        largest = f"largest relative difference of the losses {max(differences):.0e}"
        detail = f"{len(actual)} steps, loss {actual[0]:.4f} to {actual[-1]:.4f}, {largest}"
        return Finding(name, "works", f"{detail} ({tolerance:g} allowed)", precision)
    step = next(step for step, difference in enumerate(differences) if not difference <= tolerance)
    detail = f"loss {actual[step]:.4f} instead of {expected[step]:.4f} in step {step + 1}"
    return Finding(name, "wrong results", f"{detail} (relative difference allowed: {tolerance:g})", precision)


def losses(device: Device, precision: str) -> list[float]:
    """Losses of five steps of SGD with momentum. Weights and data (32, 3, 16, 16) are made on the CPU with one seed.

    Args:
        precision: 32-true, bf16-mixed or 64-true.
    """
    torch_device, dtype = device.torch_device, torch.float64 if precision == "64-true" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)
        )
        images, targets = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    network, images, targets = network.to(torch_device, dtype), images.to(torch_device, dtype), targets.to(torch_device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(_NUM_STEPS):
        with torch.autocast(torch_device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values
