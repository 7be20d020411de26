"""Writes TensorBoard events of a whole sweep: scaling with the ideal line, the plots, a layout of charts.

Uses TensorBoard's own writer, because torch's writer imports torch.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from laptime.analysis.analyze import Analysis
from laptime.analysis.group import all_scores
from laptime.analysis.laws import efficiency
from laptime.record.files import flat_config, hparam_metrics
from laptime.record.score import Score


def write_events(analysis: Analysis, images: Mapping[str, bytes], folder: Path) -> None:
    """Replace the folder with event files of TensorBoard runs: one per scaling family, `ideal`, and `plots`.

    The step of an event is the number of ranks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sizes: set[int] = set()
    names = {"ideal", "plots"}
    for number, family in enumerate(analysis.families):
        if family.baseline is None:
            continue
        name = _run_name(family.name) or "measured"
        if name in names:
            name = f"{name} {number + 1}"
        names.add(name)
        with _writer(folder / name) as writer:
            for point in family.points:
                if point.speedup is None:
                    continue
                sizes.add(point.world_size)
                scalars = {
                    "scaling/speedup": point.speedup,
                    "scaling/efficiency": efficiency(point.speedup, point.world_size),
                    "scaling/samples_per_s": point.group.samples_per_s.median,
                }
                _add(
                    writer,
                    [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()],
                    point.world_size,
                )
    if sizes:
        with _writer(folder / "ideal") as writer:
            for size in sorted(sizes):
                ideal = {"scaling/speedup": float(size), "scaling/efficiency": 1.0}
                _add(writer, [Summary.Value(tag=tag, simple_value=value) for tag, value in ideal.items()], size)
    with _writer(folder / "plots") as writer:
        values = [
            Summary.Value(tag=f"plots/{name}", image=Summary.Image(encoded_image_string=image, colorspace=3))
            for name, image in images.items()
        ]
        _add(writer, [*values, _layout(all_scores(analysis.groups)), _experiment(analysis)], 0)


def _layout(scores: Sequence[Score]) -> Summary.Value:
    """Return the layout of charts in the Custom Scalars tab."""
    categories = {
        "scaling": {"speedup": ["scaling/speedup"], "efficiency": ["scaling/efficiency"]},
        "speed": {"epoch time (s)": ["time/epoch_s"], "samples/s": ["throughput/samples_per_s"]},
        "learning": {
            "loss": ["train/loss", "val/loss"],
            **{score.name: [f"train/{score.tag}", f"val/{score.tag}"] for score in scores},
        },
    }
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title,
                chart=[
                    layout_pb2.Chart(
                        title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{t}$" for t in tags])
                    )
                    for name, tags in charts.items()
                ],
            )
            for title, charts in categories.items()
        ]
    )
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME)
    return Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def _experiment(analysis: Analysis) -> Summary.Value:
    """Return the hyperparameters and metrics of the HPARAMS tab, with settings in which runs differ first."""
    configs = [flat_config(run.full_config) | run.record.sweep_settings for run in analysis.runs]
    values = {
        name: [config.get(name) for config in configs] for name in dict.fromkeys(key for c in configs for key in c)
    }
    tags = dict.fromkeys(tag for score in all_scores(analysis.groups) for tag in hparam_metrics(score))
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_type(column), differs=len(set(map(repr, column))) > 1)
            for name, column in values.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags],
    )
    plugin = hparams.create_summary_metadata(HParamsPluginData(experiment=experiment))
    return Summary.Value(tag=hparams.EXPERIMENT_TAG, metadata=plugin)


def _type(values: list[bool | int | float | str | None]) -> int:
    """Return the data type that torch's writer gives these values."""
    if any(isinstance(value, str) for value in values):
        return int(api_pb2.DATA_TYPE_STRING)
    if all(isinstance(value, bool) for value in values):
        return int(api_pb2.DATA_TYPE_BOOL)
    return int(api_pb2.DATA_TYPE_FLOAT64)


def _encodable(folder: Path) -> str:
    """Return a path of the folder that can be encoded in UTF-8, as TensorBoard requires.

    It is relative if an ASCII locale can't encode the names of parent folders.
    """
    path = str(folder)
    try:
        path.encode()
    except UnicodeEncodeError:
        path = os.path.relpath(path)
    return path


@contextmanager
def _writer(folder: Path) -> Iterator[EventFileWriter]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(_encodable(folder))
    try:
        yield writer
    finally:
        writer.close()


def _add(writer: EventFileWriter, values: list[Summary.Value], step: int) -> None:
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _run_name(label: str) -> str:
    return re.sub(r"[^\w=., -]", "_", label)[:80].strip()
