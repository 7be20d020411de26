"""Trains on two processes that Lightning starts, twice: without a LapTimer and with one.

    python train.py STRATEGY

Writes losses_RANK.json: the losses of both trainings on each rank.
"""

import json
import sys
from pathlib import Path

import pytorch_lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import laptime


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def on_train_end(self) -> None:
        path = Path(f"losses_{self.global_rank}.json")
        earlier = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([*earlier, self.losses]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def train(*callbacks: object) -> None:
    L.seed_everything(1)
    data = TensorDataset(torch.randn(160, 6), torch.randint(0, 3, (160,)))
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=2, strategy=sys.argv[1], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=5, callbacks=[*callbacks],
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=16))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train()
    train(laptime.LapTimer(dir="run"))
