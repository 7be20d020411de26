"""What `python export.py` does: a trained run's network as ONNX, torch.export or TorchScript, checked and timed."""

from collections.abc import Sequence

from laptime.evaluation import command_line
from laptime.evaluation.keys import ExportConfig
from laptime.extras import install_command

_ABOUT = f"""\
A trained run's network as a file that runs elsewhere, without Laptime. Each file is read back and run on the real
test images: it is kept only if its outputs are the original's, within the tolerance. Prints accuracy, size and latency
beside the original's, and writes the files and export.json into export/ of the run directory. All of it on the CPU, in
float32.

  onnx          for ONNX Runtime and most others; needs {install_command("onnx")}
  torch_export  .pt2, torch's own: torch.export.load(FILE).module()
  torchscript   for what still loads it: torch advises against it and may take it away

Examples
  python export.py run=latest                                      every format whose packages are here
  python export.py run=outputs/2026-11-22/15-02-11 format=onnx int8=true
  python export.py run=latest format=torch_export,torchscript checkpoint=best
  python export.py run=latest --config-dir my_conf 'security.allowed_targets=[my_net]'    a model of your own"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where a format failed or the system refuses something, 2 for a mistake in what was
    typed."""
    return command_line.run("export", _ABOUT, arguments, _work)


def _work(config: ExportConfig, typed: list[str]) -> int:
    from laptime.exporting.wanted import wanted

    formats = wanted(config.format, config.int8)  # a package that is missing is known before anything is loaded
    from laptime.evaluation.trained_run import open_run
    from laptime.exporting.export import export
    from laptime.exporting.show import show
    from laptime.exporting.write import write
    from laptime.terminal import ignore_broken_pipe

    run = open_run(config.run, config.checkpoint, typed, config.dataset.root)
    report, files = export(run, config, formats)
    folder = write(report, files, run.path) if files else None
    with ignore_broken_pipe():
        show(report, folder)
    return 1 if report["failed"] else 0
