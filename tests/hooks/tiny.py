"""Small trainings with a Trainer of either Lightning package: batches of 4, and modules that note their losses."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

# Durations in seconds of the faked time (`now`).
STEP_S, DATA_S, VALIDATION_S, CHECKPOINT_S = 1.0, 0.25, 100.0, 1000.0


class Slow(Dataset):
    """Samples. Loading one advances the faked time."""

    def __init__(self, num: int, now: SimpleNamespace) -> None:
        generator = torch.Generator().manual_seed(num)
        self.x, self.y = torch.randn(num, 6, generator=generator), torch.randint(0, 3, (num,), generator=generator)
        self.now = now

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.now.s += DATA_S / 4
        return self.x[index], self.y[index]


class Endless(IterableDataset):
    """An endless stream of texts."""

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randint(0, 9, (6,), generator=generator)


def loader(num_batches: int, now: SimpleNamespace | None = None, **settings: Any) -> DataLoader:
    return DataLoader(Slow(4 * num_batches, now or SimpleNamespace(s=0.0)), **({"batch_size": 4} | settings))


class Tiny:
    """Trainings with one of the packages.

    Args:
        package: `pytorch_lightning` or `lightning.pytorch`.
    """

    def __init__(self, package: Any) -> None:
        self.L = package
        make: Any = _modules_of(package)
        self.Classifier, self.Gan, self.Language = make

    def trainer(self, *callbacks: Any, **settings: Any) -> Any:
        quiet = {
            "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 3,
        }  # fmt: skip
        return self.L.Trainer(
            callbacks=[callback for callback in callbacks if callback is not None], **(quiet | settings)
        )

    def fit(
        self, *callbacks: Any, module: Any = None, num_batches: int = 4, num_val: int = 0, now: Any = None,
        ckpt_path: str | None = None, data: Any = None, seed: int = 1, **settings: Any,
    ) -> Any:  # fmt: skip
        """Train, and return the Trainer."""
        torch.manual_seed(seed)
        module = module or self.Classifier(now)
        trainer = self.trainer(*callbacks, **settings)
        data = loader(num_batches, now, shuffle=True) if data is None else data
        trainer.fit(module, data, loader(num_val, now) if num_val else None, ckpt_path=ckpt_path)
        return trainer


def _modules_of(L: Any) -> tuple[Any, Any, Any]:
    class Classifier(L.LightningModule):
        """Notes the losses of its steps, and advances the faked time."""

        def __init__(
            self, now: SimpleNamespace | None = None, lr: float = 0.1, at_step: Callable[[int], None] | None = None
        ) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
            self.now, self.lr, self.at_step = now or SimpleNamespace(s=0.0), lr, at_step
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.now.s += STEP_S
            if self.at_step is not None:
                self.at_step(len(self.losses))
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.now.s += VALIDATION_S
            x, y = batch
            self.log("val_loss", F.cross_entropy(self.net(x), y))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", F.cross_entropy(self.net(batch[0]), batch[1]))
            self.log("test_acc", 0.5)

        def on_save_checkpoint(self, checkpoint: Any) -> None:
            self.now.s += CHECKPOINT_S

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    class Gan(L.LightningModule):
        """Manual optimization with two optimizers."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(3, 6), nn.Linear(6, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            real, _ = batch
            of_generator, of_critic = self.optimizers()
            fake = self.generator(torch.randn(len(real), 3))
            loss = -self.critic(fake).mean()
            self.toggle_optimizer(of_generator)
            of_generator.zero_grad()
            self.manual_backward(loss)
            of_generator.step()
            self.untoggle_optimizer(of_generator)
            loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
            of_critic.zero_grad()
            self.manual_backward(loss)
            of_critic.step()
            self.log("loss_of_critic", loss)

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.generator, self.critic)]

    class Language(L.LightningModule):
        """Predicts the next token."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            loss = F.cross_entropy(self.net(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
            return {"loss": loss}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", 2.5)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier, Gan, Language
