"""What `python evaluate.py` does: test accuracy, confusion matrix, per-class table and latency of a trained run."""

from collections.abc import Sequence

from laptime.evaluation import command_line
from laptime.evaluation.keys import EvaluateConfig

_ABOUT = """\
What a trained run gets right on its test set, and how fast it answers: test accuracy, confusion matrix, precision,
recall and F1 of each class, latency and throughput by batch size. Prints tables, and writes evaluation.json,
confusion_matrix.csv and confusion_matrix.png into evaluation/ of the run directory, over those of an earlier one.

Examples
  python evaluate.py run=latest                                    the newest run, its last checkpoint
  python evaluate.py run=outputs/2026-11-22/15-02-11 checkpoint=best
  python evaluate.py run=multirun/2026-11-22/15-10-40/0 device=cuda latency.batch_sizes=1,256
  python evaluate.py run=latest --config-dir my_conf 'security.allowed_targets=[my_net]'    a model of your own"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where the system refuses something, 2 for a mistake in what was typed."""
    return command_line.run("evaluate", _ABOUT, arguments, _work)


def _work(config: EvaluateConfig, typed: list[str]) -> int:
    from laptime.evaluation.evaluate import evaluate
    from laptime.evaluation.show import show
    from laptime.evaluation.trained_run import open_run
    from laptime.evaluation.write import write
    from laptime.terminal import ignore_broken_pipe

    run = open_run(config.run, config.checkpoint, typed, config.dataset.root)
    evaluation = evaluate(run, config)
    folder = write(evaluation, run.path)
    with ignore_broken_pipe():
        show(evaluation, folder)
    return 0
