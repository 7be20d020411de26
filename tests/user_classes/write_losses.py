"""A callback that measures the loss before and after the training."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback


class WriteLosses(Callback):
    """Writes the loss on the test set before the first and after the last epoch to loss_before_RANK.json, ..."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.note(trainer, module, "before")

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.note(trainer, module, "after")

    def note(self, trainer: Any, module: Any, when: str) -> None:
        loss, count = 0.0, 0
        was_training = module.network.training
        module.network.eval()
        with torch.no_grad():
            for images, labels in trainer.datamodule.test_dataloader():
                loss += float(F.cross_entropy(module.network(images).float(), labels, reduction="sum"))
                count += len(labels)
        module.network.train(was_training)
        Path(f"loss_{when}_{trainer.global_rank}.json").write_text(json.dumps(loss / count))
