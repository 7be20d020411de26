"""Write docs/api.md, the reference of the public API, from the docstrings: python docs/make_api.py

This script selects and orders the objects. griffe2md renders them.
"""

import logging
import re
from pathlib import Path

from griffe import GriffeLoader
from griffe2md import ConfigDict, render_object_docs

SECTIONS = {
    "From Python": ["laptime.cli.train.run", "laptime.analysis.frames.load", "laptime.analysis.frames.Results"],
    "Timers for your own training": [
        "laptime.hooks.lightning.LapTimer",
        "laptime.hooks.loop.laps",
        "laptime.hooks.loop.Laps",
        "laptime.hooks.transformers.LapTimerCallback",
    ],
    "Errors": ["laptime.errors.UserError", "laptime.errors.TrainingFailed"],
    "What a model, data set or schedule of your own builds on": [
        "laptime.data.image_data.ImageData",
        "laptime.data.image_data.Images",
        "laptime.schedulers.step_schedule.StepSchedule",
    ],
    "What a callback of your own sees": [
        "laptime.training.network_module.NetworkModule",
        "laptime.training.stepper.Stepper",
        "laptime.data.datamodule.DataModule",
    ],
    "Files of a run": [
        "laptime.record.files.read_record",
        "laptime.record.files.read_epochs",
        "laptime.record.run_record.RunRecord",
    ],
}
HEAD = """\
# API

What can be imported, from the docstrings (`python docs/make_api.py`). `import laptime` loads no torch and brings
`laptime.run`, `laptime.load`, `laptime.LapTimer`, `laptime.laps`, `laptime.Laps`, `laptime.LapTimerCallback` and the
errors; the rest is imported by its full name. Everything else is internal and may change.
"""


def page() -> str:
    """The whole of docs/api.md."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    loader = GriffeLoader(docstring_parser="google", docstring_options={"warn_missing_types": False})
    loader.load("laptime", submodules=True)
    settings = ConfigDict(heading_level=3, filters=["!^_"], summary=False, show_root_full_path=True)
    # Methods of the timers without a docstring are called by frameworks or by Laptime, not by users.
    timer_settings = ConfigDict(**{**settings, "filters": ["!^_", "!^state_dict$"]}, show_if_no_docstring=False)
    text = HEAD
    for title, names in SECTIONS.items():
        text += f"\n## {title}\n"
        section_settings = timer_settings if title.startswith("Timers") else settings
        for name in names:
            text += f"\n{render_object_docs(loader.modules_collection[name], section_settings).strip()}\n"
    headings = set(re.findall(r"^#+ `(.*)`$", text, re.MULTILINE))
    # Remove links to objects that are not on this page, e.g. classes of other libraries.
    text = re.sub(r"\[([^\]]+)\]\(#([^)]*)\)", lambda link: link[0] if link[2] in headings else link[1], text)
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page())
