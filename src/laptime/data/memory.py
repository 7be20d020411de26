"""The fast pipelines: many batches gathered and normalised at once, from uint8 tensors on the device (`memory`) or from
memory-mapped files (`mapped`)."""

from collections.abc import Iterator
from itertools import islice

from laptime.data.augment import FlipAndRotate, Normalize
from laptime.data.image_data import Images
from laptime.data.order import EpochOrder
from laptime.lap.timed_loader import Batch

# One gather makes at most this much float32 data: what is larger leaves the caches before it is trained on, and goes
# back to the system after every list, which clears it anew.
_LARGEST_GATHER_BYTES = 2**21
# And one list of batches holds at most this much.
_LARGEST_LIST_BYTES = 2**26


class MemoryPipeline:
    """Training batches from tensors.

    Args:
        data: on the training device, or mapped.
        order: which samples in which order.
        normalize, augment: from pixels to network input.
        batch_size: samples per optimizer step.
        steps_per_execution: most batches per list.
    """

    def __init__(
        self,
        data: Images,
        order: EpochOrder,
        normalize: Normalize,
        augment: FlipAndRotate,
        batch_size: int,
        steps_per_execution: int,
    ) -> None:
        self.data = data
        self.order = order
        self.normalize = normalize
        self.augment = augment
        self.batch_size = batch_size
        batch_bytes = 4 * batch_size * data.images[0].numel()
        self.steps_per_list = max(1, min(steps_per_execution, _LARGEST_LIST_BYTES // batch_bytes))
        self.steps_per_gather = max(1, min(self.steps_per_list, _LARGEST_GATHER_BYTES // batch_bytes))

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.steps_per_list))

    def step_groups(self) -> Iterator[list[Batch]]:
        batches = self._split(self._gathered(self.batch_size * self.steps_per_gather))
        while step_group := list(islice(batches, self.steps_per_list)):
            yield step_group

    def _split(self, gathered: Iterator[Batch]) -> Iterator[Batch]:
        for images, labels in gathered:
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def batches(self) -> Iterator[Batch]:
        return self._gathered(self.batch_size)

    def _gathered(self, size: int) -> Iterator[Batch]:
        """The epoch in parts of so many samples."""
        permutation = self.order.permutation().to(self.data.images.device)
        generator = self.order.generator(self.normalize.device)
        drawn = self.augment.draw(len(permutation), generator) if self.augment else permutation
        for index, drawn_part in zip(permutation.split(size), drawn.split(size), strict=True):
            images, labels = (part.to(self.normalize.device) for part in self.data.at(index))
            if self.augment:
                images = self.augment(images, drawn_part)
            yield self.normalize(images), labels


class MemoryEvaluation:
    """Batches of a whole data set in order, normalised only.

    Args:
        data: on the training device, or mapped.
        normalize: from pixels to network input.
        batch_size: samples per batch.
    """

    def __init__(self, data: Images, normalize: Normalize, batch_size: int) -> None:
        self.data = data
        self.normalize = normalize
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.data), self.batch_size):
            batch = self.data.at(slice(start, start + self.batch_size))
            images, labels = (part.to(self.normalize.device) for part in batch)
            yield self.normalize(images), labels
