"""What follows from the epochs of a run. Pure Python: training and the analysis use the same definitions."""

from collections.abc import Iterable


def time_to_accuracy(epochs: Iterable[tuple[float, float | None]], target: float, first_epoch: int = 0) -> float | None:
    """Seconds of training, warm-up included, until the validation accuracy first reached the target.

    None: never, or the run was resumed from a checkpoint, so that the time before is not known.

    Args:
        epochs: in order, the seconds of training until the end of each epoch, and its validation accuracy (a share of
            1; None or NaN: not measured).
        target: a share of 1.
        first_epoch: number of the first of them, from 0.
    """
    if first_epoch > 0:
        return None
    reached = (elapsed_s for elapsed_s, accuracy in epochs if accuracy is not None and accuracy >= target)
    return next(reached, None)
