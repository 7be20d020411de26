"""From an open group of the configuration to the object that its `_target_` names.

The constructor is the schema of an open group, so its signature is what the keys and types are checked against.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra._internal.utils import _locate

from laptime.errors import UserError, is_for_want_of_memory


def locate(group: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """Import what `_target_` names.

    Raises:
        UserError: there is no such thing, or it can't be called.
    """
    path = node.get("_target_")
    if not isinstance(path, str):
        raise UserError(f"{group}._target_={path}: must name a class, like {group}._target_=package.module.Class.")
    try:
        target = _locate(path)
    except Exception as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{group}._target_={path}: {error.__cause__}") from error
        reason = str(error.__cause__ or error).splitlines()[0].removesuffix(":")
        module, _, name = path.rpartition(".")
        if reason == f"No module named '{path}'; '{module}' is not a package":
            reason = f"{module} has no {name}"
        elif reason == f"No module named '{module}'":
            reason += ", neither where you are, nor in --config-dir, nor on PYTHONPATH"
        raise UserError(f"{group}._target_={path}: can't be imported ({reason}).") from error
    if not callable(target):
        raise UserError(f"{group}._target_={path}: is no class or function.")
    return typing.cast(Callable[..., Any], target)


def check(group: str, node: Mapping[str, Any], given: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """Check the keys of an open group, and their types, against the signature of what `_target_` names.

    Args:
        group: its name in the configuration, for the messages.
        node: `_target_` and the arguments, as plain values.
        given: names of the arguments that Laptime itself passes.

    Returns:
        The class or function.

    Raises:
        UserError: unknown, missing or ill-typed argument.
    """
    target = locate(group, node)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    parameters = _parameters(target)
    if parameters is None:
        return target
    known = [name for name in parameters if name not in given]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key, value in arguments.items():
        if key not in known:
            if takes_any:
                continue
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {group}.{close[0]}?" if close else ""
            names = ", ".join(known)
            raise UserError(
                f"{group}.{key}={value}: {group}._target_={node['_target_']} has no such argument.{hint}\n"
                f"Known: {names}."
            )
        annotation = parameters[key].annotation
        if not _fits(value, annotation):
            raise UserError(f"{group}.{key}={_as_typed(value)}: must be {_in_words(annotation)}.")
    for name, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        if required and name not in arguments and name not in given:
            raise UserError(
                f"{group}.{name}: has no value, and {group}._target_={node['_target_']} needs one. "
                f"Give it: +{group}.{name}=..."
            )
    return target


def build(group: str, node: Mapping[str, Any], kind: type = object, **given: Any) -> Any:
    """Make the object of an open group.

    Args:
        kind: what it must be.
        group: its name in the configuration, for the messages.
        node: `_target_` and the arguments, as plain values.
        given: what Laptime passes besides; what the target does not take is left out.

    Raises:
        UserError: the arguments don't fit, or the constructor refused them, or what came of it is of another kind.
    """
    target = check(group, node, frozenset(given))
    parameters = _parameters(target)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if parameters is not None and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        given = {key: value for key, value in given.items() if key in parameters}
    try:
        made = target(**given, **arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_for_want_of_memory(error):
            raise
        if not isinstance(error, _REFUSALS) and type(error).__name__ != "MisconfigurationException":
            raise  # a bug of its own: it keeps its traceback
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        key = first.partition("=")[0]
        prefix = f"{group}." if key in arguments else f"{group}={getattr(target, '__name__', target)}: "
        raise UserError(f"{prefix}{first}") from error
    if not isinstance(made, kind):
        raise UserError(f"{group}._target_={node['_target_']}: makes a {type(made).__name__}, no {kind.__name__}.")
    return made


# How constructors say that they don't like their arguments; Lightning's own exception is known by name, since it
# would load torch.
_REFUSALS = (ValueError, TypeError, RuntimeError, OSError, ImportError, SystemExit)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except Exception:  # annotations are any code: what can't be evaluated can't be checked against
        return None


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value from YAML can stand for the annotated type; what can't be told from it passes."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if annotation is types.NoneType:
        return value is None
    if annotation in (Any, inspect.Parameter.empty, object):
        return True
    if origin in _SEQUENCES or annotation in _SEQUENCES:
        items = [arg for arg in args if arg is not Ellipsis]
        if not isinstance(value, list):
            return False
        if origin is tuple and Ellipsis not in args:
            return len(value) == len(items) and all(map(_fits, value, items))
        return all(_fits(item, items[0]) for item in value) if items else True
    if isinstance(annotation, type):
        return not isinstance(value, bool | int | float | str | list | types.NoneType)
    return True


_SEQUENCES = (list, tuple, Sequence, Iterable)


def _in_words(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        plain = [arg for arg in args if arg in _WORDS or typing.get_origin(arg) is not None]
        return " or ".join(dict.fromkeys(_in_words(arg) for arg in plain or args))
    if origin is typing.Literal:
        return " or ".join(map(str, args))
    if origin is not None or annotation in _SEQUENCES:
        return f"a list, each {_in_words(args[0])}" if args else "a list"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def _as_typed(value: Any) -> str:
    """A plain value as YAML writes it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
