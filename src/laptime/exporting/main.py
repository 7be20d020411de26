"""The command `laptime export`: a trained model as ONNX, torch.export or TorchScript, checked and timed."""

from collections.abc import Sequence

from laptime import starting
from laptime.command_line import Parser
from laptime.evaluation import command_line
from laptime.evaluation.keys import ExportConfig
from laptime.extras import install_command

_ABOUT = f"""\
Exports a trained model to files that run without Laptime. Loads each file
again and runs it on the test images; keeps it only if the outputs are those
of the original, within the tolerance. Prints accuracy, size and latency next
to the original's. Writes the files and export.json to export/ in the run
directory. Everything runs on the CPU, in float32.

  onnx          for ONNX Runtime and others;
                needs {install_command("onnx")}
  torch_export  PyTorch's .pt2: torch.export.load(FILE).module()
  torchscript   for programs that still load it; PyTorch has deprecated it"""
_EXAMPLES = {
    "run=latest": "every format that is installed",
    "run=outputs/a format=onnx int8=true": "",
    "run=latest format=torch_export,torchscript": "",
    "run=latest --config-dir my_conf": "a model of your own",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if a format or the system failed, 2 for a mistake in the arguments."""
    return command_line.run(make_parser(), "export", arguments, _work)


def make_parser() -> Parser:
    return command_line.make_parser("export", _ABOUT, _EXAMPLES)


def _work(config: ExportConfig, overrides: list[str]) -> int:
    from laptime.evaluation.find_run import find_run, require_images
    from laptime.exporting.targets import export_targets

    targets = export_targets(config.format, config.int8)  # a missing package is reported before anything is loaded
    location = find_run(config.run, config.checkpoint, overrides, vars(config.dataset))
    require_images(location)

    # These load torch.
    from laptime.errors import ignore_broken_pipe
    from laptime.evaluation.trained_run import open_run
    from laptime.exporting.export import export
    from laptime.exporting.show import show
    from laptime.exporting.write import write

    starting.hand_over()
    run = open_run(location)
    report, files = export(run, config, targets)
    folder = write(report, files, run.path) if files else None
    with ignore_broken_pipe():
        show(report, folder)
    return 1 if report["failed"] else 0
