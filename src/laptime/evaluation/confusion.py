"""Confusion matrix and the figures of each class that follow from it: arrays in, arrays and frames out."""

import numpy as np
import pandas as pd

# Of more classes nobody can read the numbers.
MOST_CLASSES = 20


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was taken for each.

    Args:
        labels, predicted: classes of N samples, (N,), from 0 to num_classes - 1.

    Returns:
        (num_classes, num_classes), int64: row the true class, column the predicted one.
    """
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def per_class(matrix: np.ndarray) -> pd.DataFrame:
    """The figures of each class.

    Args:
        matrix: as `confusion_matrix` makes it.

    Returns:
        One row per class, columns class, precision (of what was taken for the class, the share that is), recall (of the
        class, the share that was found), f1 (their harmonic mean) and support (samples of the class). NaN: a share of
        nothing, as the precision of a class that was never predicted.
    """
    hits, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        shares: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
        return shares

    return pd.DataFrame(
        {
            "class": np.arange(len(matrix)),
            "precision": share(hits, predicted),
            "recall": share(hits, support),
            "f1": share(2 * hits, predicted + support),
            "support": support,
        }
    )


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The most frequent errors: (true class, predicted class, how often), most frequent first."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = [tuple(map(int, np.unravel_index(index, errors.shape))) for index in order]
    return [(true, predicted, int(errors[true, predicted])) for true, predicted in pairs if errors[true, predicted]]
