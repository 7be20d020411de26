"""Batches of text: splits a text into training, validation and test set, and makes its pipelines."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from laptime.data.datamodule import DataModule
from laptime.data.text import Text
from laptime.data.text_batches import TextEvaluation, TextPipeline, Windows, windows_of
from laptime.errors import UserError
from laptime.lap.timed_loader import Batch, Pipeline

VOCABULARY = "vocabulary"
# The test set is this part of a text, its end.
_TEST_FRACTION = 0.1


class TextDataModule(DataModule):
    """Makes batches of inputs and targets, both int64 (B, context_length). See `DataModule`."""

    data: Text

    def _load(self, seed: int) -> tuple[Windows, Windows, Windows, str]:
        data = self.data
        tokens, checksum = data.load()
        num_test = round(_TEST_FRACTION * len(tokens))
        num_val = round(data.val_fraction * (len(tokens) - num_test))
        train, val, test = tokens.split([len(tokens) - num_test - num_val, num_val, num_test])
        parts = {
            "training": windows_of(train, data.context_length, moves=True),
            "validation": windows_of(val, data.context_length, moves=False),
            "test": windows_of(test, data.context_length, moves=False),
        }
        for name, windows in parts.items():
            if not len(windows) and (name != "validation" or data.val_fraction):
                key = data.setting if data.limit is None else f"dataset.limit={data.limit}"
                raise UserError(
                    f"{key}: {len(tokens):,} characters leave fewer than dataset.context_length="
                    f"{data.context_length} + 1 for the {name} set. Use a longer text or a shorter context."
                )
        return parts["training"], parts["validation"], parts["test"], checksum

    def _pipeline(self) -> Pipeline:
        return TextPipeline(self._train, self.order, self.batch_size, self.steps_per_execution)

    def _evaluation(self, part: Windows) -> Iterable[Batch]:
        return TextEvaluation(part, self.eval_batch_size)

    def prompt(self) -> Tensor:
        """Return the first inputs of this rank's part of the test set, int64 (context_length,)."""
        inputs, _ = self._test.at(slice(0, 1))
        first: Tensor = inputs[0]
        return first

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning writes into every checkpoint: the vocabulary, without which the weights have no use."""
        return {VOCABULARY: self.data.vocabulary}
