"""Makes a command start faster: packages that it may never use are imported later, and imports collect no garbage.

`import pytorch_lightning` takes more than twice as long as `import torch`, mostly for packages of which it uses two or
three classes:

- torchmetrics, for `Metric`, `MetricCollection` and its version. It imports torchvision, scipy.signal, matplotlib and,
  where it is installed, transformers. https://github.com/Lightning-AI/torchmetrics/issues/3457 (open)
- torch._dynamo, for the class `OptimizedModule`. It imports sympy and triton. torch's optimizers import it too, for two
  functions that do nothing while nothing is compiled. Not reported.
- triton, which torch.utils.flop_counter imports for the class `JITFunction`. Not reported.

After `begin`, these packages are *deferred*: their import makes the module without running its code. Lightning, torch
and torchmetrics get the names that they need (`_PACKAGES`). As soon as they ask for another name, or anybody else asks
for any name, the code of the package runs, in the same module object. So user code always sees the real package,
whether it imports the package before or after. And a name that only a newer version of Lightning or torch needs costs
time, but is not wrong.

Python collects garbage while it imports. In large packages (`_LARGE`) that takes a sixth of the time and finds nothing,
so it waits until they are imported. Their objects are frozen, as Python's documentation of gc.freeze advises.

Only Laptime's commands call `begin`; `import laptime` in a user's script changes nothing there. LAPTIME_FAST_START=0 in
the environment switches everything off.
"""

import functools
import gc
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importing importlib.abc takes 30 ms

VARIABLE = "LAPTIME_FAST_START"
_LARGE = ("torch", "pytorch_lightning", "hydra", "pandas")


def begin() -> None:
    """Make imports of this process faster from now on. Packages that are imported already stay as they are."""
    if os.environ.get(VARIABLE) != "0" and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Package(NamedTuple):
    """A deferred module.

    Attributes:
        answers: what the requesters get while it is not loaded, by name.
        requesters: the packages and modules that get these answers.
        deferred_for: only imports by these modules are deferred; empty: all imports.
        submodules: whether the requesters may import its submodules without loading it.
    """

    answers: Mapping[str, Callable[[], Any]]
    requesters: tuple[str, ...]
    deferred_for: tuple[str, ...] = ()
    submodules: bool = False


class _Deferred(ModuleType):
    """A module whose code has not run yet."""

    def __getattr__(self, name: str) -> Any:
        # Python's import asks every module for the first, other parts of the standard library for the others.
        if name in ("__path__", "__warningregistry__", "__wrapped__"):
            raise AttributeError(name)
        package = _PACKAGES[self.__name__]
        if name in package.answers and _is_in(_requester(), package.requesters):
            return package.answers[name]()
        _load(self)
        return ModuleType.__getattribute__(self, name)

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            _load(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not _is_in(sys._getframe(1).f_globals.get("__name__", ""), ("importlib",)):  # it sets submodules
            _load(self)  # first, or its code would replace the user's value
        ModuleType.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        _load(self)
        ModuleType.__delattr__(self, name)

    def __dir__(self) -> Sequence[str]:
        _load(self)
        return dir(self)


class _Finder:
    """Finds the modules of `_PACKAGES` and `_LARGE`, and loads a deferred package before a submodule is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_reload = name in sys.modules
        package = None if is_reload else _PACKAGES.get(name)
        is_deferred = package is not None and (not package.deferred_for or _is_in(_requester(), package.deferred_for))
        if is_deferred or name in _LARGE:
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:  # a folder without __init__.py has no loader
                spec.loader = _DeferringLoader(spec.loader) if is_deferred else _QuietLoader(spec.loader)
            return spec
        parent = name.rpartition(".")[0]
        while parent:
            module = sys.modules.get(parent)
            if isinstance(module, _Deferred) and not (
                _PACKAGES[parent].submodules and _is_in(_requester(), _PACKAGES[parent].requesters)
            ):
                # Python holds the lock of the submodule now. A thread that loads the parent may need it, so don't wait.
                _load(module, wait=False)
            parent = parent.rpartition(".")[0]
        loaded = sys.modules.get(name)
        if loaded is not None and not is_reload:  # a package that was just loaded has imported it
            # Python takes the spec of such a module, and would run its code again. Some modules of torch allow no
            # new attributes, hence vars().
            vars(loaded)["__spec__"] = spec = ModuleSpec(name, _LoadedLoader(loaded))
            return spec
        return None


class _Loader(Loader):
    """Takes the place of a module's own loader while the module is imported."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.loader, name)  # e.g. to read files of a package that is not imported yet


class _DeferringLoader(_Loader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.__class__ = _Deferred


class _LoadedLoader(Loader):
    """Returns a module that has been imported while Python was looking for it."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec


class _QuietLoader(_Loader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        is_start = "pytorch_lightning" not in sys.modules or module.__name__ == "pytorch_lightning"
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            self.loader.exec_module(module)
        finally:
            if was_enabled:
                if is_start:  # later, objects of a training would be frozen, too, and never be freed
                    gc.freeze()
                gc.enable()


_loading: set[str] = set()


def _load(module: ModuleType, wait: bool = True) -> None:
    """Run the code of a deferred module, unless this thread is running it already.

    Args:
        wait: if another thread is running it, wait for its end. Otherwise return at once.
    """
    name = module.__name__
    parent = sys.modules.get(name.rpartition(".")[0])
    if isinstance(parent, _Deferred):
        _load(parent, wait)  # first, as in a usual import: its code may import this module
    if not _LOCKS[name].acquire(blocking=wait):
        return
    try:
        if not isinstance(module, _Deferred) or name in _loading:
            return
        _loading.add(name)
        try:
            assert module.__spec__ is not None and module.__spec__.loader is not None
            module.__spec__.loader.exec_module(module)
            module.__class__ = ModuleType  # type: ignore[assignment]
        finally:
            _loading.discard(name)
        if name == "torch._dynamo":
            _disable_for_real(module)
    finally:
        _LOCKS[name].release()


def _requester() -> str:
    """The name of the module whose code asks for a name or an import."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name != __name__ and not _is_in(name, ("importlib",)):
            return name
        frame = frame.f_back
    return ""


def _is_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class _StandIn(type):
    """Stands for a class of a deferred module in annotations and in isinstance().

    While that module is not loaded, it has no instances.
    """

    def __new__(cls, module: str, name: str) -> "_StandIn":
        return super().__new__(cls, name, (), {"__module__": module})

    def __init__(cls, module: str, name: str) -> None:
        super().__init__(name, (), {})

    def _real(cls) -> tuple[type, ...]:
        module = sys.modules.get(cls.__module__)
        return () if module is None or isinstance(module, _Deferred) else (getattr(module, cls.__name__),)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls._real())


def _metric_class(module: str, name: str) -> Any:
    importlib.import_module(
        "torchmetrics.utilities"
    )  # first, as in torchmetrics itself: these modules import each other
    return getattr(importlib.import_module(f"torchmetrics.{module}"), name)


@contextmanager
def _style_context(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Do what matplotlib.pyplot.style.context does. torchmetrics decorates its plot functions with it."""
    plt: Any = importlib.import_module("matplotlib.pyplot")
    with plt.style.context(*args, **kwargs):
        yield


# The functions that `_disable` has returned and that are still in use.
_disabled: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _disable(fn: Any = None, recursive: bool = True, **settings: Any) -> Any:
    """Do what torch._dynamo.disable does. The function is called as it is until torch._dynamo is loaded."""
    settings["recursive"] = recursive
    if fn is None:
        return functools.partial(_disable, **settings)
    if not isinstance(fn, FunctionType):
        dynamo: Any = sys.modules["torch._dynamo"]
        _load(dynamo)
        return dynamo.disable(fn, **settings)
    called = [fn]

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return called[0](*args, **kwargs)

    call.laptime_disabled = called, settings  # type: ignore[attr-defined]
    _disabled.add(call)
    return call


def _disable_for_real(dynamo: Any) -> None:
    for call in list(_disabled):
        called, settings = vars(call).pop("laptime_disabled")
        called[0] = dynamo.disable(called[0], **settings)
        for name, value in vars(called[0]).items():
            if name.startswith("_torchdynamo"):
                setattr(call, name, value)
        dynamo.eval_frame.skip_code(call.__code__)
    _disabled.clear()


def _do_nothing() -> None:
    """torch._dynamo.graph_break outside a compiled function."""


_LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "lightning.pytorch", "lightning.fabric")
_PLOT = ("torchmetrics.utilities.plot",)
_FLOPS = ("torch.utils.flop_counter",)
_PACKAGES = {
    "torchmetrics": _Package(
        {
            "Metric": lambda: _metric_class("metric", "Metric"),
            "MetricCollection": lambda: _metric_class("collections", "MetricCollection"),
            "_logger": lambda: importlib.import_module("logging").getLogger("torchmetrics"),
            "__version__": lambda: importlib.import_module("importlib.metadata").version("torchmetrics"),
        },
        (*_LIGHTNING, "torchmetrics", __name__),
        submodules=True,
    ),
    "torch._dynamo": _Package(
        {
            "OptimizedModule": lambda: _StandIn("torch._dynamo", "OptimizedModule"),
            "disable": lambda: _disable,
            "graph_break": lambda: _do_nothing,
        },
        (*_LIGHTNING, "torch._compile", "torch.compiler", "torch.optim.optimizer"),
    ),
    "matplotlib": _Package(
        {"colors": lambda: SimpleNamespace(Colormap=_StandIn("matplotlib.colors", "Colormap"))}, _PLOT, _PLOT, True
    ),
    "matplotlib.axes": _Package({"Axes": lambda: _StandIn("matplotlib.axes", "Axes")}, _PLOT, _PLOT),
    "matplotlib.pyplot": _Package(
        {
            "Figure": lambda: _StandIn("matplotlib.figure", "Figure"),
            "style": lambda: SimpleNamespace(context=_style_context),
        },
        _PLOT,
        _PLOT,
    ),
    "triton": _Package({}, _FLOPS, _FLOPS, True),
    "triton.runtime": _Package({}, _FLOPS, _FLOPS, True),
    "triton.runtime.jit": _Package(
        {"JITFunction": lambda: _StandIn("triton.runtime.jit", "JITFunction")}, _FLOPS, _FLOPS
    ),
}
_LOCKS = {name: threading.RLock() for name in _PACKAGES}
