"""Deferred imports: what is loaded before the first step, and that user code sees the real packages.

Each test runs its code in a new interpreter, because a process imports a package once.
"""

import json
import os
import subprocess
import sys

import pytest

# Packages outside the standard library that a training of the MLP loads before its first step has ended.
LOADED_BEFORE_THE_FIRST_STEP = {
    "absl", "antlr4", "attr", "cuda", "cython_runtime",
    "filelock", "fsspec", "functorch", "google", "hydra", "hydra_plugins", "jinja2",
    "laptime", "lightning_fabric", "lightning_utilities", "markupsafe", "mpmath", "msgspec", "numpy", "omegaconf",
    "opt_einsum", "packaging", "platformdirs", "psutil", "pygments", "pynvml",
    "pytorch_lightning", "rich", "tensorboard",
    "torch", "torchgen", "torchmetrics", "tqdm", "typing_extensions", "yaml",
}  # fmt: skip
# Parts of torch that take long to import and that only compiled or sharded models use.
NOT_LOADED = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.onnx"}

TRAIN_ONE_STEP = """
import json, os, sys
from laptime import fast_start
fast_start.begin()
from laptime.cli.train import main
from torch.optim.optimizer import register_optimizer_step_post_hook

def report(optimizer, args, kwargs):
    if any(weight.grad is not None for weight in optimizer.param_groups[0]["params"]):
        deferred = {name: type(module).__name__ == "_Deferred" for name, module in sys.modules.items()}
        print("DEFERRED", json.dumps(deferred), flush=True)
        os._exit(0)

register_optimizer_step_post_hook(report)
main(["training.epochs=1", "dataset.limit=1000", "device=cpu"])
"""


def run_python(code: str, **environment: str) -> str:
    """Run code in a new interpreter. Return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_unexpected_is_imported_before_the_first_step(work_folder):
    printed = run_python(TRAIN_ONE_STEP)
    is_deferred = json.loads(printed.partition("DEFERRED ")[2].splitlines()[0])
    loaded = {name for name in is_deferred if not is_deferred[name]}
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    unexpected = {name for name in packages if not name.startswith("_")} - LOADED_BEFORE_THE_FIRST_STEP
    assert not unexpected, f"imported before the first step: {sorted(unexpected)}. Import them where they are used."
    assert not NOT_LOADED & loaded
    # The packages that this suite has, and Lightning would load.
    assert {"torch._dynamo", "torchmetrics", "matplotlib.pyplot"} <= set(is_deferred) - loaded


@pytest.mark.soak
def test_switched_off_by_a_variable():
    code = """
import sys
from laptime import fast_start
fast_start.begin()
import pytorch_lightning, torch._dynamo, torchmetrics
assert not any(type(finder).__module__ == "laptime.fast_start" for finder in sys.meta_path)
assert type(torch._dynamo) is type(torchmetrics) is type(sys)
"""
    run_python(code, LAPTIME_FAST_START="0")


def test_importing_laptime_defers_nothing():
    code = """
import sys
import laptime
assert not any(type(finder).__module__ == "laptime.fast_start" for finder in sys.meta_path)
"""
    run_python(code)


USER_CODE = """
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import scipy.signal
import torch
import torch._dynamo.config
import torchmetrics
import torchvision
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

torch._dynamo.config.cache_size_limit = 16
accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
assert isinstance(accuracy, MulticlassAccuracy) and isinstance(accuracy, Metric)
assert accuracy(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])).item() == torch.tensor(2 / 3).item()
figure, axes = accuracy.plot()
assert isinstance(axes, matplotlib.axes.Axes) and isinstance(figure, plt.Figure)
assert accuracy.plot(ax=plt.subplots()[1])[0] is None
assert scipy.signal.hamming is scipy.signal.windows.hamming  # what torchmetrics adds
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
assert "Accuracy" in dir(torchmetrics) and torchmetrics.__version__
"""
LIGHTNING = """
from laptime import fast_start
fast_start.begin()
import pytorch_lightning
"""
# Lightning's own classes are those of the user.
SAME_CLASSES = """
import sys
from pytorch_lightning.trainer.connectors.logger_connector import result
assert result.Metric is torchmetrics.Metric and issubclass(result._ResultMetric, torchmetrics.Metric)
from pytorch_lightning.core import module
assert module.MetricCollection is torchmetrics.MetricCollection
for name in ("torchmetrics", "matplotlib", "matplotlib.axes", "matplotlib.pyplot"):
    assert type(sys.modules[name]) is type(sys), name
"""


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((LIGHTNING, USER_CODE), id="after"),
        pytest.param((USER_CODE, LIGHTNING), id="before", marks=pytest.mark.soak),
    ],
)
def test_a_user_sees_the_real_packages(parts):
    run_python("".join([*parts, SAME_CLASSES]))


@pytest.mark.soak
def test_a_function_that_is_excluded_from_compilation_stays_excluded():
    """Also one that was excluded before torch._dynamo was loaded."""
    code = """
import sys
from laptime import fast_start
fast_start.begin()
import pytorch_lightning, torch

@torch.compiler.disable
def double(x):
    calls.append(torch.compiler.is_compiling())
    return 2 * x

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return double(self.layer(x)) + 1

calls, network, x = [], Network(), torch.randn(2, 4)
expected = network(x)
optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
network(x).sum().backward()
optimizer.step()
assert type(sys.modules["torch._dynamo"]).__name__ == "_Deferred"
compiled = torch.compile(network, backend="eager")
for _ in range(2):
    assert torch.equal(compiled(x), expected)
assert calls == [False] * 4
explanation = torch._dynamo.explain(network)(x)
assert explanation.graph_count == 2, explanation
compiled(x).sum().backward()
optimizer.step()  # torch had asked for torch._dynamo.disable before
from lightning_fabric import wrappers
assert isinstance(compiled, wrappers.OptimizedModule) and not isinstance(network, wrappers.OptimizedModule)
"""
    run_python(code)


@pytest.mark.soak
def test_a_name_that_is_not_known_loads_the_package():
    """As a newer Lightning may ask for other names."""
    code = """
import sys
from laptime import fast_start
fast_start.begin()
import pytorch_lightning
names = {"__name__": "pytorch_lightning.newer"}
exec("from torch._dynamo.eval_frame import OptimizedModule as real\\nfrom torch._dynamo import list_backends", names)
assert type(sys.modules["torch._dynamo"]) is type(sys)
exec("from torch._dynamo import OptimizedModule", names)
assert names["OptimizedModule"] is names["real"] and "inductor" in names["list_backends"]()
exec("from torchmetrics import SumMetric", names)
assert type(sys.modules["torchmetrics"]) is type(sys)
assert names["SumMetric"]()(2).item() == 2
"""
    run_python(code)


@pytest.mark.soak
def test_two_threads_that_ask_at_once_both_get_the_package():
    code = """
import sys, threading
from laptime import fast_start
fast_start.begin()
import pytorch_lightning
found, start = [], threading.Barrier(2)

def ask(name):
    start.wait()
    found.append(getattr(sys.modules["torchmetrics"], name))

threads = [threading.Thread(target=ask, args=[name]) for name in ("Accuracy", "MeanMetric")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert {kind.__name__ for kind in found} == {"Accuracy", "MeanMetric"}
"""
    run_python(code)


def test_a_package_that_can_not_be_loaded_says_so_each_time(tmp_path):
    (tmp_path / "torchmetrics").mkdir()
    (tmp_path / "torchmetrics" / "__init__.py").write_text("raise ImportError('broken')\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
for _ in range(2):
    try:
        from torchmetrics import Accuracy
    except ImportError as error:
        assert str(error) == "broken", error
    else:
        raise AssertionError("no error")
"""
    run_python(code)


def test_a_module_can_be_reloaded(tmp_path):
    (tmp_path / "mine.py").write_text("count = globals().get('count', 0) + 1\n")
    code = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
import mine
assert importlib.reload(mine).count == 2
"""
    run_python(code)


def test_what_a_user_sets_in_a_package_stays(tmp_path):
    """Also if the package is loaded later."""
    (tmp_path / "torchmetrics.py").write_text("Accuracy = MeanMetric = old = 1\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
def deferred():
    sys.modules.pop("torchmetrics", None)
    import torchmetrics
    assert type(torchmetrics).__name__ == "_Deferred"
    return torchmetrics

package = deferred()
package.Accuracy = package.pi = 3
assert (package.MeanMetric, package.Accuracy, package.pi) == (1, 3, 3)
package = deferred()
del package.old
assert package.MeanMetric == 1 and not hasattr(package, "old")
assert vars(deferred())["MeanMetric"] == 1
"""
    run_python(code)


def test_files_of_a_package_can_be_read_before_it_is_loaded():
    code = """
import importlib.resources, importlib.util, pkgutil
from laptime import fast_start
fast_start.begin()
assert importlib.util.find_spec("pandas").loader.get_filename("pandas").endswith("__init__.py")
import torchmetrics
assert type(torchmetrics).__name__ == "_Deferred"
assert pkgutil.get_data("torchmetrics", "__init__.py")
assert importlib.resources.files("torchmetrics").joinpath("__init__.py").is_file()
"""
    run_python(code)


def test_a_thread_can_import_a_submodule_while_another_one_loads_the_package(tmp_path):
    package = tmp_path / "torchmetrics"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import builtins\nbuiltins.loading.set()\nbuiltins.importing.wait()\nimport torchmetrics.part\nname = 1\n"
    )
    (package / "part.py").write_text("")
    code = f"""
import builtins, faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
import torchmetrics

class Finder:  # is asked while Python holds the submodule's lock
    def find_spec(self, name, path, target=None):
        if name == "torchmetrics.part":
            builtins.importing.set()

sys.meta_path.insert(0, Finder())
builtins.loading, builtins.importing = threading.Event(), threading.Event()
threads = [threading.Thread(target=lambda: torchmetrics.name)]
threads[0].start()
builtins.loading.wait()
import torchmetrics.part
threads[0].join()
assert torchmetrics.name == 1 and torchmetrics.part.__name__ == "torchmetrics.part"
"""
    run_python(code)


def test_a_folder_with_the_name_of_a_package_that_is_not_installed(tmp_path):
    (tmp_path / "pandas").mkdir()
    code = f"""
import sys
from laptime import fast_start
fast_start.begin()
sys.path = [{str(tmp_path)!r}, *(path for path in sys.path if "site-packages" not in path)]
import pandas
assert {str(tmp_path / "pandas")!r} in pandas.__path__
"""
    run_python(code)


def test_a_deferred_package_can_be_reloaded(tmp_path):
    (tmp_path / "torchmetrics.py").write_text("count = globals().get('count', 0) + 1\n")
    code = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
import torchmetrics
assert torchmetrics.count == 1
assert importlib.reload(torchmetrics).count == 2
"""
    run_python(code)


def test_functions_that_are_excluded_from_compilation_are_not_kept():
    code = """
import gc, sys
from laptime import fast_start
fast_start.begin()
import torch
torch.compiler.disable(lambda: 0)()
gc.collect()
assert type(sys.modules["torch._dynamo"]).__name__ == "_Deferred"
assert not any(call.__name__ == "<lambda>" for call in fast_start._disabled)
"""
    run_python(code)


def test_an_import_during_training_freezes_no_object_of_it(tmp_path):
    for name in ("pytorch_lightning", "pandas"):
        (tmp_path / f"{name}.py").write_text("")
    code = f"""
import gc, sys
sys.path.insert(0, {str(tmp_path)!r})
from laptime import fast_start
fast_start.begin()
import pytorch_lightning
frozen = gc.get_freeze_count()
created = [[] for _ in range(10_000)]
import pandas
assert 0 < gc.get_freeze_count() <= frozen and gc.isenabled()
"""
    run_python(code)


def test_garbage_is_collected_again_after_an_import():
    code = """
import gc
from laptime import fast_start
fast_start.begin()
import hydra
assert gc.isenabled() and gc.get_freeze_count() > 0
gc.disable()
import pandas
assert not gc.isenabled()  # as the user has set it
"""
    run_python(code)
