"""Prints an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.evaluation.confusion import MOST_CLASSES, most_confused
from laptime.measure.latency import TIMED_TEXT
from laptime.record.score import Score
from laptime.terminal import relative
from laptime.text import counted


def show(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Print the tables of an evaluation to stdout.

    Args:
        evaluation: the result of `evaluate`.
        folder: the folder with the written files.
    """
    console = Console()
    summary = Table(title=Text(f"laptime: {_name(evaluation)}, evaluated"), title_justify="left", show_header=False)
    summary.add_column(style="bold", no_wrap=True)
    summary.add_column(overflow="fold")
    for name, value in summary_rows(evaluation):
        summary.add_row(Text(name), Text(value))
    console.print(summary)
    if "confusion_matrix" in evaluation:
        console.print(_per_class(evaluation))
        matrix = np.array(evaluation["confusion_matrix"])
        if len(matrix) <= MOST_CLASSES:
            console.print(_confusion(matrix))
    if evaluation["latency"]["batch_sizes"]:
        latency = evaluation["latency"]
        print_latency(console, {"": latency["batch_sizes"]}, latency["timed"], latency["disturbances"])
    console.print(Text(f"Written      {relative(folder)}"), soft_wrap=True)


def _name(evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['model']} on {evaluation['dataset']['name']}"


def summary_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the first table."""
    checkpoint, device = evaluation["checkpoint"], evaluation["device"]
    threads = counted(evaluation["threads"], "thread", ",")
    used = f"{device['used']}, {device['name']}, {threads}, precision {evaluation['precision']}"
    if device["requested"] not in ("auto", "accelerator", device["used"]):
        used += f"  (requested: {device['requested']}, not available)"
    figures = _of_images(evaluation) if "confusion_matrix" in evaluation else _of_text(evaluation)
    return [
        ("checkpoint", f"{relative(Path(checkpoint['path']))}, after {training_length(checkpoint)}"),
        ("device", used + (", compiled" if evaluation["compile"] else "")),
        ("data", f"{evaluation['dataset']['name']}: {evaluation['dataset']['num_test']:,} test"),
        *figures,
    ]


def _of_images(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    result, macro = evaluation["result"], evaluation["macro"]
    confused = most_confused(np.array(evaluation["confusion_matrix"]), 3)
    return [
        ("test accuracy", f"{result['test_accuracy']:.2%}  (loss {result['test_loss']:.4f})"),
        ("recorded", _recorded(evaluation["recorded"])),
        ("mean of classes", f"precision {macro['precision']:.4f}, recall {macro['recall']:.4f}, F1 {macro['f1']:.4f}"),
        ("most confused", ", ".join(f"{count} x {true} as {predicted}" for true, predicted, count in confused) or "-"),
    ]


def _of_text(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    score, recorded = Score(**evaluation["score"]), evaluation["recorded"]

    def words(result: Mapping[str, Any]) -> str:
        return f"{score.text(result['test_score'])}  (loss {result['test_loss']:.4f})"

    comparison = "nothing"
    if recorded["test_score"] is not None:
        comparison = words(recorded)
        if recorded["is_equal"] is None:
            comparison += f"; not compared: {', '.join(recorded['why_not_compared'])}"
        else:
            comparison += ", equal" if recorded["is_equal"] else "; different"
    return [(f"test {score.name}", words(evaluation["result"])), ("recorded", comparison)]


def training_length(checkpoint: Mapping[str, Any]) -> str:
    """Return how long a checkpoint of a report was trained: `5 epochs` or `2,000 steps`."""
    epochs, steps = checkpoint["epochs"], checkpoint["steps"]
    return counted(steps, "step", ",") if epochs is None else counted(epochs, "epoch", ",")


def _recorded(recorded: Mapping[str, Any]) -> str:
    if recorded["test_accuracy"] is None:
        return "nothing"
    accuracy = f"{recorded['test_accuracy']:.2%}  (loss {recorded['test_loss']:.4f})"
    if recorded["is_equal"] is None:
        return f"{accuracy}; not compared: {', '.join(recorded['why_not_compared'])}"
    if recorded["is_equal"]:
        return f"{accuracy}, equal"
    change = recorded["num_images_apart"]
    return f"{accuracy}; now {counted(abs(change), 'image', ',')} {'more' if change > 0 else 'fewer'} correct"


def _per_class(evaluation: Mapping[str, Any]) -> Table:
    table = Table(title="Per class", title_justify="left")
    for column in ("class", "precision", "recall", "F1", "support"):
        table.add_column(column, justify="right")
    for row in evaluation["per_class"]:
        figures = [_figure(row[key]) for key in ("precision", "recall", "f1")]
        table.add_row(str(row["class"]), *figures, f"{row['support']:,}")
    return table


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _confusion(matrix: np.ndarray) -> Table:
    table = Table(title="Confusion matrix (rows: true class, columns: predicted class)", title_justify="left")
    table.add_column("", justify="right", style="bold")
    for number in range(len(matrix)):
        table.add_column(str(number), justify="right")
    for number, row in enumerate(matrix):
        cells = [Text("" if count == 0 else str(count), style="bold" if at == number else "") for at, count in
                 enumerate(row)]  # fmt: skip
        table.add_row(str(number), *cells)
    return table


def print_latency(
    console: Console, networks: Mapping[str, Sequence[Mapping[str, Any]]], timed: str, disturbances: Sequence[str]
) -> None:
    """Print a table of the latencies of one or more networks.

    Args:
        networks: the results per batch size, by name of the network ("": the only one); a result may have `speedup`.
        timed: a description of what was timed.
        disturbances: interference while timing; empty: none detected.
    """
    is_one = len(networks) == 1
    compared = any("speedup" in row for rows in networks.values() for row in rows)
    table = Table(title="Latency", title_justify="left")
    samples = "samples/s" if timed == TIMED_TEXT else "images/s"
    columns = ["batch size", *([] if is_one else ["network"]), "p50", "p95", "p99", samples, "calls"]
    for column in [*columns, *(["x original"] if compared else [])]:
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    sizes = dict.fromkeys(row["batch_size"] for rows in networks.values() for row in rows)
    for size in sizes:
        for name, rows in networks.items():
            for row in rows:
                if row["batch_size"] == size:
                    cells = [_ms(row[f"p{q}_s"]) for q in (50, 95, 99)]
                    cells += [f"{row['samples_per_s']:,.0f}", str(row["num_calls"])]
                    cells += [f"{row['speedup']:.2f} x" if "speedup" in row else ""] if compared else []
                    table.add_row(str(size), *([] if is_one else [name]), *cells)
    console.print(table)
    console.print(Text(f"Timed: {timed}."))
    if disturbances:
        console.print(Text(f"Interference: {'; '.join(disturbances)}."))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f} ms"
