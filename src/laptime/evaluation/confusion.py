"""Confusion matrix and figures per class, from arrays of labels."""

import numpy as np
import pandas as pd

# With more classes, the numbers of a printed or plotted confusion matrix are not readable.
MOST_CLASSES = 20


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count each pair of true and predicted class.

    Args:
        labels, predicted: classes of N samples, (N,), from 0 to num_classes - 1.

    Returns:
        An int64 array (num_classes, num_classes). Rows are true classes, columns are predicted classes.
    """
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def per_class(matrix: np.ndarray) -> pd.DataFrame:
    """Return the figures of each class.

    Args:
        matrix: the result of `confusion_matrix`.

    Returns:
        One row per class, with the columns class, precision, recall, f1 and support (samples of the class). NaN if the
        divisor is 0, as for the precision of a class that was never predicted.
    """
    hits, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

    def ratio(numerator: np.ndarray, divisor: np.ndarray) -> np.ndarray:
        ratios: np.ndarray = np.divide(numerator, divisor, out=np.full(len(numerator), np.nan), where=divisor > 0)
        return ratios

    return pd.DataFrame(
        {
            "class": np.arange(len(matrix)),
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, support),
            "f1": ratio(2 * hits, predicted + support),
            "support": support,
        }
    )


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent errors as (true class, predicted class, number of images)."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = [tuple(map(int, np.unravel_index(index, errors.shape))) for index in order]
    return [(true, predicted, int(errors[true, predicted])) for true, predicted in pairs if errors[true, predicted]]
