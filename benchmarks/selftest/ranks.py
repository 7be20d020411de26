"""Ranks on the device, over the backend that it has: one, and as many as there are devices."""

from selftest.part import Notes, Setting, Skipped
from selftest.trainings import SMALL, check_learned, train

BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}


def ranks(setting: Setting, notes: Notes) -> None:
    """The same global batch on one process, one rank and all ranks gives the same losses."""
    backend = BACKENDS.get(setting.kind)
    if backend is None:
        raise Skipped(f"{setting.kind} has no backend for ranks")
    num_ranks = max(setting.num_devices, 2 if setting.rehearsal else 1)
    typed = [*SMALL, "model=mlp", f"training.batch_size={8 * num_ranks}", "training.batch_scope=global"]
    expected = train(setting, "single", *typed, device="cpu")
    for world_size in dict.fromkeys((1, num_ranks)):
        wrapped = ["strategy.wrap_single_rank=true"] if world_size == 1 else []
        what = f"world size {world_size}"
        with notes.attempt(what):
            record = train(setting, f"ranks-{world_size}", *typed, *wrapped, f"strategy.world_size={world_size}")
            used = record["strategy"]["backend"]
            notes.check(f"{what}: backend", used == backend, f"{used}, expected {backend}")
            check_learned(notes, what, record, expected)
            notes.figure(f"{what}: throughput", record["timing"]["samples_per_s"], "samples/s")
    if num_ranks == 1:
        notes.skip("several ranks", f"one {setting.kind} device is here")
