"""Whether a device trains: a few real steps of a tiny network, their losses compared with what they must be.

The reference is the same steps in float64 on the CPU, which other code computes than float32 (oneDNN has no float64):
so the CPU itself can be found out, and a CPU that is wrong puts no blame on the others.
"""

import torch
from torch import nn

from laptime.doctor.finding import Finding, in_one_line
from laptime.errors import UserError
from laptime.machine.device import Device, available_accelerator, check_precision, describe

# The largest relative difference of a loss. What sound devices need: 1e-7 in float32, 4e-4 with the TF32 that torch
# lets NVIDIA's convolutions use, 4e-3 in bfloat16. What a fault makes: gradients 10% off, 7e-2.
TOLERANCES = {"32-true": 2e-3, "bf16-mixed": 2e-2}
_NUM_STEPS = 5


def check_devices() -> list[Finding]:
    """The CPU and every accelerator that torch finds, each in every precision of `TOLERANCES` that it takes."""
    places = [("cpu", 0)]
    accelerator = available_accelerator()
    if accelerator is not None:
        places += [(accelerator, index) for index in range(torch.accelerator.device_count())]
    return [check(used, index, precision) for used, index in places for precision in TOLERANCES]


def check(used: str, index: int, precision: str) -> Finding:
    """Train on one device and compare.

    Args:
        used: cpu, mps, cuda or xpu.
        index: which of several.
        precision: a key of `TOLERANCES`.
    """
    name = "cpu" if used == "cpu" else f"{used}:{index}"
    try:
        device = describe("auto", used, index)
        check_precision(precision, device)
        found, expected = losses(device, precision), losses(describe("auto", "cpu"), "64-true")
    except UserError as refusal:
        return Finding(name, "not there", str(refusal).partition(": ")[2], precision)
    except Exception as error:  # whatever a driver raises is the answer that was asked for
        return Finding(name, "fails", in_one_line(error), precision)
    return compare(name, precision, found, expected)


def compare(name: str, precision: str, found: list[float], expected: list[float]) -> Finding:
    """The verdict on the losses of a few steps."""
    tolerance = TOLERANCES[precision]
    differences = [abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True)]
    if all(difference <= tolerance for difference in differences):  # never so for NaN
        detail = f"{len(found)} steps, loss {found[0]:.4f} to {found[-1]:.4f}, off by {max(differences):.0e} at most"
        return Finding(name, "works", f"{detail} ({tolerance:g} allowed)", precision)
    step = next(step for step, difference in enumerate(differences) if not difference <= tolerance)
    detail = f"loss {found[step]:.4f} in step {step + 1}, where {expected[step]:.4f} is right"
    return Finding(name, "computes something else", f"{detail} (relative difference allowed: {tolerance:g})", precision)


def losses(device: Device, precision: str) -> list[float]:
    """Of five steps of SGD with momentum; weights and data (32, 3, 16, 16) are made on the CPU, the same every time.

    Args:
        precision: 32-true, bf16-mixed or 64-true.
    """
    place, dtype = device.torch_device, torch.float64 if precision == "64-true" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)
        )
        images, targets = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    network, images, targets = network.to(place, dtype), images.to(place, dtype), targets.to(place)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    found = []
    for _ in range(_NUM_STEPS):
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
