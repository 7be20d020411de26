"""A dense network, and the module that trains it."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import Accuracy


class SimpleDenseNet(nn.Module):
    def __init__(self, lin1_size: int = 8, output_size: int = 2) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(36, lin1_size), nn.BatchNorm1d(lin1_size), nn.ReLU(),
                                   nn.Linear(lin1_size, output_size))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1))


class NoiseLitModule(L.LightningModule):
    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], compile: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = (Accuracy(task="multiclass", num_classes=2) for _ in range(2))
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()

    def step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self.net(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, preds, targets = self.step(batch)
        self.train_loss(loss)
        self.train_acc(preds, targets)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, preds, targets = self.step(batch)
        self.val_loss(loss)
        self.val_acc(preds, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        loss, preds, targets = self.step(batch)
        self.log("test/loss", loss)
        self.log("test/acc", (preds == targets).float().mean())

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.hparams.optimizer(params=self.trainer.model.parameters())}
