"""Train with one rank, and with one rank per device, over the device's backend."""

from selftest.part import Notes, Setting, Skipped
from selftest.trainings import SMALL, check_learned, train

BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}


def ranks(setting: Setting, notes: Notes) -> None:
    """Check that the same global batch gives the same losses in one process, with one rank and with all ranks."""
    backend = BACKENDS.get(setting.kind)
    if backend is None:
        raise Skipped(f"{setting.kind} has no backend for ranks")
    num_ranks = max(setting.num_devices, 2 if setting.rehearsal else 1)
    overrides = [*SMALL, "model=mlp", f"training.batch_size={8 * num_ranks}", "training.batch_scope=global"]
    expected = train(setting, "single", *overrides, device="cpu")
    for world_size in dict.fromkeys((1, num_ranks)):
        wrapped = ["strategy.wrap_single_rank=true"] if world_size == 1 else []
        title = f"world size {world_size}"
        with notes.attempt(title):
            record = train(setting, f"ranks-{world_size}", *overrides, *wrapped, f"strategy.world_size={world_size}")
            used = record["strategy"]["backend"]
            notes.check(f"{title}: backend", used == backend, f"{used}, expected {backend}")
            check_learned(notes, title, record, expected)
            notes.figure(f"{title}: throughput", record["timing"]["samples_per_s"], "samples/s")
    if num_ranks == 1:
        notes.skip("several ranks", f"this machine has one {setting.kind} device")
