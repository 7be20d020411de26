"""LightningModules and a LightningDataModule of a user's, for task=own: the square of numbers is learned."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Numbers(pl.LightningDataModule):
    """Vectors x of 4 numbers with the target sum(x)."""

    def __init__(self, num: int = 64, batch_size: int = 8, shuffle: bool = True, num_workers: int = 0) -> None:
        super().__init__()
        self.num, self.batch_size, self.shuffle, self.num_workers = num, batch_size, shuffle, num_workers

    def _loader(self, num: int, seed: int, shuffle: bool = False) -> DataLoader:
        x = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))
        data = TensorDataset(torch.arange(num), x, x.sum(1, keepdim=True))
        return DataLoader(data, self.batch_size, shuffle=shuffle, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.num, 0, self.shuffle)

    def val_dataloader(self) -> DataLoader:
        return self._loader(16, 1)


class TestedNumbers(Numbers):
    """The same with a test set."""

    def test_dataloader(self) -> DataLoader:
        return self._loader(24, 2)


class Sum(pl.LightningModule):
    """Learns the sum with SGD, and notes the samples it trains on."""

    def __init__(self, width: int = 4, lr: float = 0.05, net: nn.Module | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = net or nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    def loss(self, batch: Any) -> Tensor:
        _, x, y = batch
        return F.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/mse", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log_dict({"val_loss": loss, "val/error": loss.sqrt()}, sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log_dict({"test_loss": loss, "test/error": loss.sqrt()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class TwoOptimizers(Sum):
    """Trains its two layers with an optimizer each, by hand."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[index].parameters(), self.lr) for index in (0, 2)]


class NotesSamples(Sum):
    """Writes the numbers of the samples of each epoch to samples-RANK.json in the run directory."""

    def on_fit_start(self) -> None:
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.epochs[-1] += batch[0].tolist()
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        path = Path(self.trainer.default_root_dir) / f"samples-{self.global_rank}.json"
        path.write_text(json.dumps(self.epochs))


class TakingTurns(Sum):
    """Trains its two layers in turns, as a GAN does its networks: in each step, one of them gets no gradient."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()[batch_idx % 2]
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[index].parameters(), self.lr) for index in (0, 2)]
