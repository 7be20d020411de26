"""A training with a LapTimer is bitwise equal to one without, and the Trainer is restored afterwards."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tests.hooks.tiny import Tiny, loader


def hooks_of(thing: Any) -> dict[str, int]:
    """The number of hooks of a module or an optimizer, of each kind."""
    return {name: len(value) for name, value in vars(thing).items() if "hook" in name and hasattr(value, "__len__")}


def state(tiny: Tiny, timer: Any, kind: str, profiler: Any = None, num_batches: int = 12, **settings: Any) -> Any:
    """Train, and return everything that a timer might have changed."""
    random.seed(3)
    np.random.seed(3)
    warnings.simplefilter("default")  # the same before each training
    module = {"automatic": tiny.Classifier, "manual": tiny.Gan}[kind]()
    torch.manual_seed(5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    trainer = tiny.fit(
        timer, module=module, data=loader(num_batches, shuffle=True), num_val=2, val_check_interval=5,
        profiler=profiler, **settings,
    )  # fmt: skip
    losses = getattr(module, "losses", [])
    tensors = [tensor.detach() for tensor in module.state_dict().values()]
    tensors += [value for optimizer in trainer.optimizers for entry in optimizer.state.values()
                for value in entry.values()
                if isinstance(value, torch.Tensor)]  # fmt: skip
    tensors.append(torch.get_rng_state())
    plain = {
        "losses": losses,
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad": (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        "matmul": torch.get_float32_matmul_precision(),
        "filters": list(warnings.filters),
        "hooks": [hooks_of(owner) for owner in (*module.modules(), *trainer.optimizers)],
        "profiler": (type(trainer.profiler), sorted(vars(trainer.profiler))),
        "loop": sorted(vars(trainer.fit_loop.epoch_loop.val_loop)),
        "module": sorted(vars(module)),
        "steps": trainer.global_step,
        "metrics": sorted(trainer.callback_metrics),
    }
    return tensors, plain, trainer


@pytest.mark.parametrize("settings", [{}, {"every": 10}])
@pytest.mark.parametrize("kind", ["automatic", "manual"])
def test_training_with_a_timer_is_bitwise_equal(kind, settings, tiny, lap_timer, timed):
    tensors, plain, _ = state(tiny, None, kind)
    with_timer, plain_with, trainer = state(tiny, lap_timer(**settings), kind)
    assert plain_with == plain
    assert len(with_timer) == len(tensors) and all(map(torch.equal, with_timer, tensors))
    # The timer has measured everything.
    assert timed.record["breakdown"]["step_s"] and timed.record["model"]["flops_per_batch"]
    assert "start" not in vars(trainer.profiler) and "run" not in vars(trainer.fit_loop.epoch_loop.val_loop)


def test_measuring_the_peak_changes_nothing(tiny, lap_timer, timed):
    tensors, plain, _ = state(tiny, None, "automatic")
    with_timer, plain_with, _ = state(tiny, lap_timer(peak=True), "automatic")
    assert plain_with == plain and all(map(torch.equal, with_timer, tensors))
    peak = timed.record["peak"]
    assert peak["mfu"] > 0 and peak["verdict"]
    assert any(" MFU (peak: " in line for line in timed.lines)


def test_accumulation_and_clipping(tiny, lap_timer, timed):
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "num_batches": 16}
    tensors, plain, _ = state(tiny, None, "automatic", **settings)
    with_timer, plain_with, _ = state(tiny, lap_timer(), "automatic", **settings)
    assert plain_with == plain and all(map(torch.equal, with_timer, tensors))
    assert timed.record["breakdown"]["step_s"]


def test_users_profiler_gets_the_same_calls(tiny, lap_timer, timed):
    def recorded(timer: Any) -> Any:
        profiler = tiny.L.profilers.SimpleProfiler()
        tensors, plain, trainer = state(tiny, timer, "automatic", profiler=profiler)
        assert trainer.profiler is profiler
        of_timer = "[Callback]LapTimer"
        return tensors, plain, {
            action: len(times) for action, times in profiler.recorded_durations.items() if of_timer not in action
        }  # fmt: skip

    tensors, plain, actions = recorded(None)
    with_timer, plain_with, actions_with = recorded(lap_timer())
    assert actions_with == actions and actions["run_training_batch"] == 36
    assert plain_with == plain and all(map(torch.equal, with_timer, tensors))
    assert any("profiler" in reason for reason in timed.record["quality"]["reasons"])


@pytest.mark.parametrize("fails", [RuntimeError("no"), KeyboardInterrupt()])
def test_trainer_is_restored_after_an_aborted_training(fails, tiny, lap_timer, work_folder):
    import signal

    def at_step(step: int) -> None:
        if step == 6:  # a warm-up step whose phases are being measured
            raise fails

    handler = signal.getsignal(signal.SIGINT)
    trainer, module = tiny.trainer(lap_timer()), tiny.Classifier(at_step=at_step)
    with pytest.raises((RuntimeError, SystemExit)):
        trainer.fit(module, loader(12))
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    assert not {"start", "stop"} & set(vars(trainer.profiler))
    assert "run" not in vars(trainer.fit_loop.epoch_loop.val_loop)
