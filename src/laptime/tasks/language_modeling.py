"""Language modeling: learns the next character of a text."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from laptime.config.schema import LANGUAGE_MODELING
from laptime.data.datamodule import DataModule
from laptime.data.text import Text
from laptime.data.text_datamodule import TextDataModule
from laptime.lap.epoch_sums import Means
from laptime.tasks.sampling import continue_text
from laptime.tasks.task import Task


class LanguageModeling(Task):
    """A network maps tokens (B, T), int64, to logits (B, T, vocab_size) for the token after each. The loss is cross
    entropy in nats per token."""

    name = LANGUAGE_MODELING
    data_class = Text
    data_module = TextDataModule
    network_arguments = frozenset({"vocab_size", "context_length"})
    content = "text"
    has_accuracy = False

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def score_of(self, means: Means) -> float:
        """Return the bits per character: the loss, with the logarithm to base 2."""
        return means.loss / math.log(2)

    def sample(self, network: nn.Module, data: DataModule, seed: int) -> str:
        """Return the beginning of the test set with the network's continuation."""
        assert isinstance(data, TextDataModule)
        prompt = data.prompt().to(next(network.parameters()).device)
        return data.data.decode([*prompt.tolist(), *continue_text(network, prompt, seed)])
