"""Lightning's accelerator for Intel GPUs, which Lightning 2.6 lacks; built on torch.accelerator."""

from typing import Any

import torch
from pytorch_lightning.accelerators import Accelerator


class XPUAccelerator(Accelerator):
    """One Intel GPU, torch's `xpu`."""

    def setup_device(self, device: torch.device) -> None:
        torch.accelerator.set_device_index(device.index or 0)

    def teardown(self) -> None:
        torch.accelerator.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        return dict(torch.accelerator.memory_stats())

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return list(range(devices)) if isinstance(devices, int) else list(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("xpu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.accelerator.device_count()

    @staticmethod
    def is_available() -> bool:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator is not None and accelerator.type == "xpu"

    @staticmethod
    def name() -> str:
        return "xpu"
