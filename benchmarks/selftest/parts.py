"""All parts in order: first those that explain failures of others, last those that may disturb the device."""

from selftest import data, learning, measuring, ranks, runs, trouble
from selftest.part import Part

PARTS = (
    Part("memory_in_use", "how much of the device's memory other processes use", runs.memory_in_use),
    Part("doctor", "results of devices and backends", runs.doctor),
    Part("models", "every model: losses against the CPU's", learning.models, 120),
    Part("optimizers", "every optimizer: losses against the CPU's", learning.optimizers),
    Part("precisions", "every precision: losses against the CPU's", learning.precisions),
    Part("memory", "recorded peak memory against torch's", measuring.memory),
    Part("synchronization", "whether an epoch's time includes queued work", measuring.synchronization),
    Part("peak", "peak of the device, and MFU", measuring.peak, 90),
    Part("resume", "a training that is resumed on the CPU, and one that is resumed on the device", runs.resume),
    Part(
        "evaluate_and_export",
        "evaluate.py and export.py on a run that was trained on the device",
        runs.evaluate_and_export,
    ),
    Part("pipelines", "every data pipeline: losses against the CPU's", data.pipelines, 90),
    Part("copies", "copies from pinned and pageable memory to the device", data.copies),
    Part("ranks", "the device's backend with one rank, and with one rank per device", ranks.ranks, 90),
    Part("device_benchmark", "a small experiment=device_benchmark", runs.device_benchmark, 90),
    Part("compile", "torch.compile: losses, time to compile and speedup", learning.compiled, 120),
    Part("ctrl_c", "Ctrl-C during a training on the device", trouble.ctrl_c, 90),
    Part("out_of_memory", "out of memory on the device", trouble.out_of_memory),
)
