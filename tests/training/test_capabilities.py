"""What Laptime needs of a module: the NetworkModule has everything; a plain module is refused or measured less."""

import io
import logging
import re
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from rich.console import Console
from tests.support import sources
from torch import nn
from torch.utils.data import DataLoader

from laptime.callbacks.progress_bar import ProgressBar
from laptime.errors import UserError
from laptime.lap.epoch_timer import EpochTimer
from laptime.machine.device import resolve
from laptime.measure.bare_loop import BareLoop
from laptime.measure.breakdown import Breakdown
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.record import schema
from laptime.runner import train as runner
from laptime.training import NetworkModule
from laptime.training.capabilities import (
    HasStepper,
    HasTestMeans,
    Retrainable,
    TakesSteps,
    configured_optimizer,
    missing_attributes,
)
from laptime.training.compile_ahead import CompileAhead
from laptime.training.stepper import Stepper
from laptime.training.strategy import RankStrategy
from laptime.training.trainer import quiet_lightning

pytestmark = pytest.mark.unit

DEVICE = resolve("cpu", "error")
BATCH = (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))


class MyModule(pl.LightningModule):
    """What Lightning requires, and nothing else."""

    def __init__(self, made=None):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        self.made = made

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1) if self.made is None else self.made

    def training_step(self, step_group, batch_idx):
        return sum(nn.functional.cross_entropy(self.network(images), labels) for images, labels in step_group)

    def validation_step(self, batch, batch_idx):
        pass


def network_module():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return NetworkModule(Stepper(network, DEVICE), partial(torch.optim.SGD, lr=0.1), lambda optimizer: None)


def fit(module: pl.LightningModule, *callbacks: Callback, strategy: RankStrategy | str = "auto") -> pl.Trainer:
    """Train for one epoch of two Lightning batches, with validation."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        plugins=LightningEnvironment(),
        max_epochs=1,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with quiet_lightning():
        trainer.fit(module, DataLoader([[BATCH], [BATCH]], batch_size=None), DataLoader([BATCH], batch_size=None))
    return trainer


def strategy(world_size: int = 1) -> RankStrategy:
    return RankStrategy(DEVICE.torch_device, Rank(world_size=world_size), {}, "none", 60.0, shards=False)


@pytest.fixture
def process_group():
    """A process group of one rank, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def warnings(caplog):
    """A function that returns the messages of Laptime's warnings until now."""
    caplog.set_level(logging.WARNING, logger="laptime")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("laptime")]


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        (HasStepper, "MyModule has no stepper"),
        (TakesSteps, "MyModule has no stepper, take_steps, train_sums"),
        (Retrainable, "MyModule has no make_average, make_optimizer, make_scheduler, seed, stepper, train_sums"),
        (HasTestMeans, "MyModule has no test_means"),
    ],
)
def test_the_classifier_has_every_capability_and_a_plain_module_none(capability, said):
    assert isinstance(network_module(), capability)
    assert not isinstance(MyModule(), capability)
    assert missing_attributes(MyModule(), capability) == said


def test_only_missing_attributes_are_named():
    module = MyModule()
    module.stepper, module.train_sums = network_module().stepper, None
    assert missing_attributes(module, TakesSteps) == "MyModule has no take_steps"


def test_ddp_wraps_the_classifiers_network(process_group):
    module = network_module()
    fit(module, strategy=strategy())
    assert module.stepper.ddp.module is module.network


@pytest.mark.parametrize(
    ("world_size", "asked", "instead"),
    [
        (2, "strategy.world_size=2", "strategy.world_size=1"),
        (1, "strategy.wrap_single_rank=true", "strategy.wrap_single_rank=false"),
    ],
)
def test_a_module_that_ddp_cant_wrap_is_refused(process_group, world_size, asked, instead):
    with pytest.raises(UserError) as refusal:
        fit(MyModule(), strategy=strategy(world_size))
    assert str(refusal.value).startswith(f"{asked}: MyModule has no stepper, ")
    assert str(refusal.value).endswith(f"Use {instead}.")


def test_one_process_trains_any_module_and_saves_its_optimizer_state():
    trainer = fit(MyModule(), strategy=strategy())
    (optimizer,) = trainer.optimizers
    assert trainer.strategy.optimizer_state(optimizer) == optimizer.state_dict()


def test_the_classifier_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda network, **options: None)
    data = SimpleNamespace(
        data=sources.images((1, 2, 2)),
        order=SimpleNamespace(lap_word="epoch"),
        train_batch_sizes=lambda: [2],
        val_batch_sizes=lambda: [2],
    )
    module, compiler = network_module(), CompileAhead(DEVICE, data)
    fit(module, compiler)
    assert module.stepper.is_compiled and compiler.compile_s is not None


def test_a_module_that_cant_be_compiled_ahead_is_refused():
    with pytest.raises(UserError) as refusal:
        fit(MyModule(), CompileAhead(DEVICE, None))
    message = str(refusal.value)
    assert message.startswith("training.compile=true: MyModule has no stepper, ")
    assert message.endswith("Use training.compile=false.")


def test_a_module_that_cant_be_retrained_has_no_bare_loop(warnings):
    bare_loop = BareLoop(DEVICE, Rank(), StopRequest(), EpochTimer(DEVICE, 0))
    fit(MyModule(), bare_loop)
    assert bare_loop.measured == schema.BareLoop()
    assert warnings() == [f"measure.bare_loop: not measured: {missing_attributes(MyModule(), Retrainable)}"]


def test_a_module_without_take_steps_has_no_breakdown(warnings):
    breakdown = Breakdown(DEVICE, Rank(), StopRequest(), in_sweep=False)
    breakdown.measure(MyModule(), None)
    assert (breakdown.breakdown, breakdown.communication) == (schema.Breakdown(), schema.Communication())
    assert breakdown.contention == schema.Contention()
    assert warnings() == ["measure.breakdown: not measured: MyModule has no stepper, take_steps, train_sums"]


def test_a_module_without_test_means_is_not_tested(warnings):
    run = SimpleNamespace(record=SimpleNamespace(result=schema.Result()))
    runner._test(run, SimpleNamespace(is_global_zero=True), MyModule(), None)
    assert run.record.result == schema.Result()
    assert warnings() == ["the test is skipped: MyModule has no test_means"]


def test_the_progress_bar_shows_less_of_a_module_that_counts_no_samples():
    bar, screen = ProgressBar(), io.StringIO()
    bar.console = Console(file=screen, force_terminal=True, width=120)
    fit(MyModule(), bar)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"epoch 1/1 \S+ 100%\s*$", shown, re.MULTILINE)
    assert "loss" not in shown and "samples/s" not in shown


def test_one_optimizer_is_accepted_in_every_form_that_lightning_allows():
    optimizer = torch.optim.SGD(MyModule().parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    parts = {"optimizer": optimizer}
    assert configured_optimizer(network_module())[1] is None
    assert configured_optimizer(MyModule(optimizer)) == configured_optimizer(MyModule(parts)) == (optimizer, None)
    assert configured_optimizer(MyModule({**parts, "lr_scheduler": scheduler})) == (optimizer, scheduler)
    assert configured_optimizer(MyModule({**parts, "lr_scheduler": {"scheduler": scheduler}})) == (optimizer, scheduler)


def test_several_optimizers_are_refused():
    optimizer = torch.optim.SGD(MyModule().parameters(), lr=0.1)
    refusal = r"^MyModule: configure_optimizers\(\) returns list; Laptime trains with one optimizer\."
    with pytest.raises(UserError, match=refusal):
        configured_optimizer(MyModule([optimizer, optimizer]))
