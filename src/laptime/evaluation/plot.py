"""Plots the confusion matrix."""

import io

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from laptime.evaluation.confusion import MOST_CLASSES


@matplotlib.rc_context({"text.parse_math": False})
def confusion_png(matrix: np.ndarray, title: str) -> bytes:
    """Return a PNG image of a confusion matrix (K, K). Its color scale is logarithmic, to make rare errors visible."""
    size = 6.4 if len(matrix) <= MOST_CLASSES else 8.0
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.add_subplot()
    largest = max(2, int(matrix.max(initial=0)))
    image = axes.imshow(np.where(matrix > 0, matrix, np.nan), cmap="cividis_r", norm=LogNorm(1, largest))
    figure.colorbar(image, label="test images")
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if len(matrix) <= MOST_CLASSES:
        axes.set_xticks(range(len(matrix)))
        axes.set_yticks(range(len(matrix)))
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                dark = np.log(count) > 0.6 * np.log(largest)
                axes.text(column, row, str(count), ha="center", va="center", size=7, color="white" if dark else "black")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
