"""Makes the object that the `_target_` of an open group names.

The constructor is the schema of an open group: keys and types are checked against its signature. An argument may itself
be a mapping with a `_target_`, or a list of them: Hydra makes those objects first.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.utils import _locate
from hydra.utils import instantiate

from laptime import suggest
from laptime.config import foreign_answers, vouching
from laptime.config.explain import renamed_key
from laptime.errors import UserError, first_line, is_out_of_memory
from laptime.record.files import flat
from laptime.record.renamed import RENAMED

# Keys of Hydra's instantiate that are not arguments of the object, and their types.
_INSTANTIATE_KEYS = {"_partial_": bool, "_recursive_": bool, "_args_": list, "_convert_": str}
_CONVERSIONS = ("none", "partial", "object", "all")


def locate(group: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """Import what `_target_` names.

    Raises:
        UserError: it can't be imported, or is not callable.
    """
    path = node.get("_target_")
    if not isinstance(path, str):
        raise UserError(f"{group}._target_={path}: must name a class, like {group}._target_=package.module.Class.")
    try:
        target = _locate(path)
    except Exception as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{group}._target_={path}: {error.__cause__}") from error
        reason = first_line(error.__cause__ or error).removesuffix(":")
        module, _, name = path.rpartition(".")
        if reason == f"No module named '{path}'; '{module}' is not a package":
            reason = f"{module} has no {name}"
        elif reason == f"No module named '{module}'":
            reason += " in the current folder, in --config-dir or on PYTHONPATH"
        raise UserError(f"{group}._target_={path}: can't be imported ({reason}).") from error
    vouching.verify(path, target)
    if not callable(target):
        raise UserError(f"{group}._target_={path}: must be a class or function.")
    return typing.cast(Callable[..., Any], target)


def check(
    group: str, node: Mapping[str, Any], injected: frozenset[str] = frozenset(), kind: type = object
) -> Callable[..., Any]:
    """Check keys and types of an open group against the signature of what `_target_` names. Nested objects are checked
    the same way.

    Args:
        group: full key of the node, for messages.
        node: `_target_` and the arguments, as plain values.
        injected: names of the arguments that Laptime itself passes.
        kind: the required base class, if `_target_` names a class.

    Returns:
        The class or function.

    Raises:
        UserError: an argument is unknown, missing or of a wrong type, or the class is wrong.
    """
    for key in _INSTANTIATE_KEYS:
        if key in node:
            raise UserError(
                f"{group}.{key}={_as_yaml(node[key])}: only works in nested objects, because Laptime "
                f"creates {group} itself. Leave it out."
            )
    target = locate(group, node)
    if isinstance(target, type) and not issubclass(target, kind):
        raise _wrong_kind(group, node, target, kind)
    _check_arguments(group, node, target, injected)
    for key, value in node.items():
        for inner, inner_node, inner_target in targets_in(f"{group}.{key}", value):
            _check_arguments(inner, inner_node, inner_target)
    return target


def targets_in(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any], Callable[..., Any]]]:
    """Full key, node and class or function of each object that a value describes, at the top or nested.

    Raises:
        UserError: a `_target_` can't be imported, or a key of Hydra's instantiate is misused.
    """
    if isinstance(value, Mapping):
        special = {name: item for name, item in value.items() if name in _INSTANTIATE_KEYS}
        if "_target_" in value:
            _check_special(key, special)
            yield key, value, locate(key, value)
        elif special:
            name = next(iter(special))
            raise UserError(f"{key}.{name}={_as_yaml(special[name])}: has no effect without {key}._target_.")
        if value.get("_recursive_", True):
            for name, item in value.items():
                yield from targets_in(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from targets_in(f"{key}[{number}]", item)


def _check_special(key: str, special: Mapping[str, Any]) -> None:
    for name, value in special.items():
        if not isinstance(value, _INSTANTIATE_KEYS[name]) or (name == "_convert_" and value not in _CONVERSIONS):
            expected = " or ".join(_CONVERSIONS) if name == "_convert_" else _describe(_INSTANTIATE_KEYS[name])
            raise UserError(f"{key}.{name}={_as_yaml(value)}: must be {expected}.")


def _check_arguments(
    group: str, node: Mapping[str, Any], target: Callable[..., Any], injected: frozenset[str] = frozenset()
) -> None:
    parameters = _parameters(target)
    if parameters is None:
        return
    arguments = {key: value for key, value in node.items() if key != "_target_" and key not in _INSTANTIATE_KEYS}
    by_position = _check_positional(group, node, parameters)
    known_arguments = [name for name in parameters if name not in injected and name not in by_position]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key, value in arguments.items():
        if key not in known_arguments:
            if takes_any and key not in by_position:
                continue
            raise _unknown_argument(group, node, key, value, known_arguments)
        _check_type(f"{group}.{key}", value, parameters[key].annotation)
    for name, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        if required and name not in arguments and name not in injected and name not in by_position:
            if node.get("_partial_"):
                continue  # the code that calls the partial passes the rest
            passed = " or ".join(sorted(injected - parameters.keys()))
            rename = f", or rename the argument to {passed}, which Laptime passes" if passed else ""
            raise UserError(
                f"{group}.{name}: has no value, but {group}._target_={node['_target_']} needs one. "
                f"Set it: +{group}.{name}=...{rename}"
            )


def _unknown_argument(
    group: str, node: Mapping[str, Any], key: str, value: Any, known_arguments: Sequence[str]
) -> UserError:
    text = f"{group}.{key}={_as_yaml(value)}"
    if RENAMED.get(f"{group}.{key}", "").rpartition(".")[2] in known_arguments:
        return UserError(renamed_key(f"{group}.{key}", f"={_as_yaml(value)}", text))
    for leaf, leaf_value in (
        flat(value, f"{group}.{key}.") if isinstance(value, Mapping) else [(f"{group}.{key}", value)]
    ):
        text_value = _as_yaml(leaf_value)
        answer = foreign_answers.answer(f"{leaf}={text_value}", leaf, text_value, foreign_answers.ROOT_KEYS)
        if answer is not None:
            return UserError(answer)
    hint = suggest.did_you_mean(key, known_arguments, 0.6, f"{group}.")
    return UserError(
        f"{text}: {group}._target_={node['_target_']} has no such argument.{f' {hint}' if hint else ''}\nKnown: "
        f"{suggest.listed(known_arguments)}."
    )


def _check_positional(group: str, node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """Check `_args_`. Returns the names of the parameters that it fills."""
    values = node.get("_args_", [])
    positional = [
        parameter
        for parameter in parameters.values()
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    if len(values) > len(positional) and not takes_any:
        raise UserError(
            f"{group}._args_={values}: {group}._target_={node['_target_']} takes {len(positional)} "
            "positional arguments."
        )
    for number, (value, parameter) in enumerate(zip(values, positional, strict=False)):
        _check_type(f"{group}._args_[{number}]", value, parameter.annotation)
    return {parameter.name for parameter in positional[: len(values)]}


def _check_type(key: str, value: Any, annotation: Any) -> None:
    if not _matches(value, annotation):
        hint = " Add a _target_ that names its class." if isinstance(value, Mapping) else ""
        raise UserError(f"{key}={_as_yaml(value)}: must be {_describe(annotation)}.{hint}")


def build(group: str, node: Mapping[str, Any], kind: type = object, **injected: Any) -> Any:
    """Make the object of an open group, and the objects nested in it.

    Args:
        group: full key of the node, for messages.
        node: `_target_` and the arguments, as plain values.
        kind: the required class of the object.
        injected: further arguments from Laptime; those that the target does not accept are left out.

    Raises:
        UserError: the arguments don't match the signature, the constructor refuses them, or the class is wrong.
    """
    target = check(group, node, frozenset(injected), kind)
    parameters = _parameters(target)
    arguments = {key: _make_argument(f"{group}.{key}", value) for key, value in node.items() if key != "_target_"}
    if parameters is not None and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        injected = {key: value for key, value in injected.items() if key in parameters}
    try:
        made = target(**injected, **arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not _is_refusal(error):
            raise
        first = first_line(error)
        key = first.partition("=")[0]
        prefix = f"{group}." if key in arguments else f"{shown(group, node)}: "
        raise UserError(f"{prefix}{first}") from error
    if not isinstance(made, kind):
        raise _wrong_kind(group, node, type(made), kind)
    return made


def shown(group: str, node: Mapping[str, Any]) -> str:
    """A group as a constructor call with its arguments, for errors that do not say which argument is wrong."""
    arguments = [f"{key}={_as_yaml(value)}" for key, value in node.items() if not key.startswith("_")]
    return f"{group}={str(node.get('_target_')).rpartition('.')[2]}({', '.join(arguments)})"


def _make_argument(key: str, value: Any) -> Any:
    """An argument, with the objects that it describes made."""
    if next(targets_in(key, value), None) is None:
        return value
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _instantiate(key, value)
        return {name: _make_argument(f"{key}.{name}", item) for name, item in value.items()}
    return [_make_argument(f"{key}[{number}]", item) for number, item in enumerate(value)]


def _instantiate(key: str, node: Mapping[str, Any]) -> Any:
    """Let Hydra make an object from a mapping. Its arguments are plain values unless `_convert_` is set."""
    _require_resolved(key, node)
    try:
        return instantiate({"_convert_": "all", **node})
    except (Exception, SystemExit) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(cause, UserError) or not _is_refusal(cause):
            raise cause from None
        deeper = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        if deeper is not None:
            key = f"{key}{'' if deeper[1].startswith('[') else '.'}{deeper[1]}"
        raise UserError(f"{key}: can't be created ({first_line(cause)}).") from cause


def _require_resolved(key: str, value: Any) -> None:
    """Refuse interpolations: Hydra would resolve them after the check, so they could name unchecked targets.

    Raises:
        UserError: a value contains an interpolation.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            _require_resolved(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_resolved(f"{key}[{number}]", item)
    elif isinstance(value, str) and ("${" in value or value == "???"):
        raise UserError(f"{key}={value}: the arguments of a nested _target_ can't contain ??? or ${{...}}.")


def _wrong_kind(group: str, node: Mapping[str, Any], made: type, kind: type) -> UserError:
    message = f"{group}._target_={node['_target_']}: must create a {kind.__name__}, but creates a {made.__name__}."
    package, required = "", kind.__module__.partition(".")[0]
    for base in made.__mro__:
        if base.__name__ == kind.__name__:
            package = base.__module__.partition(".")[0]
    if package:
        message = (
            f"{group}._target_={node['_target_']}: its {kind.__name__} is from the package {package}, but Laptime "
            f"uses {required}. Use the class from {required}, or derive yours from it."
        )
    return UserError(message)


def _is_refusal(error: BaseException) -> bool:
    """Whether a constructor refused its arguments. Other errors are bugs and keep their traceback."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, _REFUSALS) or type(error).__name__ in _REFUSALS_BY_NAME


# Exceptions of constructors that refuse their arguments. Lightning's is compared by name, because importing it loads
# torch; so is Hydra's, which matters here only if it has no cause.
_REFUSALS = (ValueError, TypeError, RuntimeError, OSError, ImportError, SystemExit)
_REFUSALS_BY_NAME = ("MisconfigurationException", "InstantiationException")


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except Exception:  # annotations may contain any code; without their values there is nothing to check
        return None


def _matches(value: Any, annotation: Any) -> bool:
    """Whether a plain value from YAML matches an annotation. Annotations that can't be compared match."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, arg) for arg in args)
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
            return len(value) == len(items) and all(map(_matches, value, items))
        return all(_matches(item, items[0]) for item in value) if items else True
    if isinstance(annotation, type):
        if isinstance(value, dict) and annotation.__module__ != "builtins":
            return _is_like_a_mapping(annotation)
        return not isinstance(value, bool | int | float | str | list | types.NoneType)
    return True


def _is_like_a_mapping(annotation: type) -> bool:
    try:
        return issubclass(dict, annotation)
    except TypeError:  # a TypedDict or a protocol, which can't be checked
        return True


_SEQUENCES = (list, tuple, Sequence, Iterable)


def _describe(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        plain = [arg for arg in args if arg in _WORDS or typing.get_origin(arg) is not None]
        return " or ".join(dict.fromkeys(_describe(arg) for arg in plain or args))
    if origin is typing.Literal:
        return " or ".join(map(str, args))
    if origin is not None or annotation in _SEQUENCES:
        return f"a list, each {_describe(args[0])}" if args else "a list"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def _as_yaml(value: Any) -> str:
    """A plain value in YAML."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
