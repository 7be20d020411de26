"""The command `laptime evaluate`: test accuracy, confusion matrix, per-class table and latency of a trained run."""

from collections.abc import Sequence

from laptime import starting
from laptime.command_line import Parser
from laptime.evaluation import command_line
from laptime.evaluation.keys import EvaluateConfig

_ABOUT = """\
Evaluates a trained model on its test set: accuracy, confusion matrix,
precision, recall and F1 per class, and latency and throughput per batch size.
Prints tables. Writes evaluation.json, confusion_matrix.csv and
confusion_matrix.png to evaluation/ in the run directory, replacing older ones."""
_EXAMPLES = {
    "run=latest": "the newest run",
    "run=outputs/a checkpoint=best": "",
    "run=multirun/a/0 device=cuda latency.batch_sizes=1,256": "",
    "run=latest --config-dir my_conf": "a model of your own",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 for an error of the system, 2 for a mistake in the arguments."""
    return command_line.run(make_parser(), "evaluate", arguments, _work)


def make_parser() -> Parser:
    return command_line.make_parser("evaluate", _ABOUT, _EXAMPLES)


def _work(config: EvaluateConfig, overrides: list[str]) -> int:
    from laptime.evaluation.find_run import find_run

    location = find_run(config.run, config.checkpoint, overrides, vars(config.dataset))

    # These load torch.
    from laptime.errors import ignore_broken_pipe
    from laptime.evaluation.evaluate import evaluate
    from laptime.evaluation.show import show
    from laptime.evaluation.trained_run import open_run
    from laptime.evaluation.write import write

    starting.hand_over()
    run = open_run(location)
    evaluation = evaluate(run, config)
    folder = write(evaluation, run.path)
    with ignore_broken_pipe():
        show(evaluation, folder)
    return 0
