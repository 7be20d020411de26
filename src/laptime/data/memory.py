"""The fast pipelines. They gather and normalize many batches together, from uint8 tensors on the device (`memory`) or
from memory-mapped files (`mapped`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

from laptime.data.augment import FlipAndRotate, Normalize
from laptime.data.image_data import Images
from laptime.data.order import EpochOrder
from laptime.lap.timed_loader import Batch

# Maximum bytes of one gather. Larger data would be evicted from the caches before training on it, and its
# memory would be returned to the system and zeroed again for every step group.
_MAX_GATHER_BYTES = 2**21
# Maximum bytes of a step group.
_MAX_STEP_GROUP_BYTES = 2**26


class GatheringPipeline(ABC):
    """Training batches that are gathered many at a time.

    Args:
        order: the order of the samples.
        batch_size: samples per optimizer step.
        steps_per_execution: maximum number of batches per step group.
        sample_bytes: the bytes of a sample in a batch.
    """

    def __init__(self, order: EpochOrder, batch_size: int, steps_per_execution: int, sample_bytes: int) -> None:
        self.order = order
        self.batch_size = batch_size
        batch_bytes = batch_size * sample_bytes
        self.steps_per_group = max(1, min(steps_per_execution, _MAX_STEP_GROUP_BYTES // batch_bytes))
        self.steps_per_gather = max(1, min(self.steps_per_group, _MAX_GATHER_BYTES // batch_bytes))

    @abstractmethod
    def _gathered(self, size: int) -> Iterator[Batch]:
        """Yield the samples of an epoch in batches of `size`."""

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.steps_per_group))

    def step_groups(self) -> Iterator[list[Batch]]:
        batches = self._split(self._gathered(self.batch_size * self.steps_per_gather))
        while step_group := list(islice(batches, self.steps_per_group)):
            yield step_group

    def _split(self, gathered: Iterator[Batch]) -> Iterator[Batch]:
        for inputs, targets in gathered:
            yield from zip(inputs.split(self.batch_size), targets.split(self.batch_size), strict=True)

    def batches(self) -> Iterator[Batch]:
        return self._gathered(self.batch_size)


class MemoryPipeline(GatheringPipeline):
    """Training batches of images.

    Args:
        data: images on the training device, or mapped from files.
        normalize, augment: turn pixels into network input.
        order, batch_size, steps_per_execution: see `GatheringPipeline`.
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
        super().__init__(order, batch_size, steps_per_execution, 4 * data.images[0].numel())
        self.data = data
        self.normalize = normalize
        self.augment = augment

    def _gathered(self, size: int) -> Iterator[Batch]:
        generator = self.order.generator(self.normalize.device)
        for part in self.order.parts():
            indices = part.to(self.data.images.device)
            drawn = self.augment.draw(len(indices), generator) if self.augment else indices
            for index, drawn_part in zip(indices.split(size), drawn.split(size), strict=True):
                images, labels = (values.to(self.normalize.device) for values in self.data.at(index))
                if self.augment:
                    images = self.augment(images, drawn_part)
                yield self.normalize(images), labels


class MemoryEvaluation:
    """Batches of a whole data set in order, normalized but not augmented.

    Args:
        data: images on the training device, or mapped from files.
        normalize: turns pixels into network input.
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
