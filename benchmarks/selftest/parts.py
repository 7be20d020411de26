"""All parts, in the order in which they are tried: what explains the others first, what may hurt last."""

from selftest import data, learning, measuring, ranks, runs, trouble
from selftest.part import Part

PARTS = (
    Part("memory_in_use", "how much of the device's memory other processes use", runs.memory_in_use),
    Part("doctor", "devices and backends compute what they must", runs.doctor),
    Part("models", "every model: losses against the CPU's", learning.models, 120),
    Part("optimizers", "every optimizer: losses against the CPU's", learning.optimizers),
    Part("precisions", "every precision: losses against the CPU's", learning.precisions),
    Part("memory", "the recorded peak against torch's own", measuring.memory),
    Part("synchronization", "an epoch's time includes what the device has queued", measuring.synchronization),
    Part("peak", "peak of the device, and MFU", measuring.peak, 90),
    Part("resume", "a training that goes from the device to the CPU, and back", runs.resume),
    Part(
        "evaluate_and_export",
        "evaluate.py and export.py on a run that was trained on the device",
        runs.evaluate_and_export,
    ),
    Part("pipelines", "every data pipeline: losses against the CPU's", data.pipelines, 90),
    Part("copies", "copies from the host's memory to the device's, pinned and not", data.copies),
    Part("ranks", "the device's own backend, one rank and one per device", ranks.ranks, 90),
    Part("device_benchmark", "experiment=device_benchmark, in small", runs.device_benchmark, 90),
    Part("compile", "torch.compile: losses, cost and gain", learning.compiled, 120),
    Part("ctrl_c", "Ctrl-C within a training on the device", trouble.ctrl_c, 90),
    Part("out_of_memory", "the device's memory runs out", trouble.out_of_memory),
)
