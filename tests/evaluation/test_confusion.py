"""Confusion matrix and per-class figures against numbers worked out by hand."""

import numpy as np
import pytest

from laptime.evaluation.confusion import confusion_matrix, most_confused, per_class

pytestmark = pytest.mark.unit

# Three classes and ten samples; class 2 is never predicted.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 0])


def test_rows_are_true_classes_and_columns_predicted_ones():
    assert confusion_matrix(LABELS, PREDICTED, 3).tolist() == [[3, 1, 0], [2, 2, 0], [1, 1, 0]]


def test_figures_of_each_class():
    table = per_class(confusion_matrix(LABELS, PREDICTED, 3)).set_index("class")
    # Of 6 taken for class 0, 3 are; of its 4 samples 3 were found; F1 = 2 * 3 / (6 + 4).
    assert table.loc[0].tolist() == pytest.approx([3 / 6, 3 / 4, 0.6, 4])
    assert table.loc[1].tolist() == pytest.approx([2 / 4, 2 / 4, 0.5, 4])
    assert np.isnan(table.loc[2, "precision"])
    assert table.loc[2, ["recall", "f1", "support"]].tolist() == [0, 0, 2]


def test_a_share_of_nothing_is_no_number():
    table = per_class(confusion_matrix(np.array([0, 0]), np.array([0, 0]), 2))
    assert table.loc[1, ["precision", "recall", "f1"]].isna().all()


def test_most_frequent_errors_come_first_and_what_never_happened_is_left_out():
    assert most_confused(confusion_matrix(LABELS, PREDICTED, 3), 2) == [(1, 0, 2), (0, 1, 1)]
    assert most_confused(np.array([[5, 0], [0, 5]]), 3) == []
