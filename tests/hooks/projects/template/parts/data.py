"""Images of noise, and which of them are brighter."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class NoiseDataModule(L.LightningDataModule):
    def __init__(self, data_dir: str, num: int = 256, batch_size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.hparams.num, 1, 6, 6, generator=generator)
        self.data = TensorDataset(x, (x.mean((1, 2, 3)) > 0.5).long())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.hparams.batch_size)

    test_dataloader = val_dataloader
