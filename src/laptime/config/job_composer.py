"""Composes the jobs of a sweep. Hydra composes jobs that differ only in numbers once.

Hydra reads every file and merges every group for each job, which takes a tenth of a second. A sweep may have thousands.
"""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf

from laptime.config.compose import compose, without_hydra
from laptime.config.overrides import Override, as_hydra, parse

# The overrides of a job, with the type of the value instead of each number that may differ.
_Shape = tuple[str | tuple[str, type], ...]


class _Template:
    """What jobs of the same shape have in common, made from the first one. Their overrides are without Hydra's own."""

    def __init__(self, composed: DictConfig, positions: Sequence[int]) -> None:
        """Keep a copy of a configuration.

        Args:
            positions: where in the overrides the numbers are in which jobs may differ.
        """
        self._positions = positions
        self._cache = OmegaConf.get_cache(composed)
        self._new_copy = _copier(composed)

    @cached_property
    def _shared(self) -> tuple[DictConfig, DictConfig]:
        """The configuration with and without Hydra's own part, whose numbers are replaced."""
        cfg = self._new_copy()
        return cfg, without_hydra(cfg)

    def fits(self, texts: Sequence[str]) -> bool:
        """Whether the configuration accepts the numbers of a job of this shape."""
        try:
            self._set_numbers(self._shared[0], texts)
            return True
        except Exception:  # of many classes; the caller lets Hydra raise it
            return False

    def compose(self, texts: Sequence[str]) -> DictConfig:
        """Return the configuration of a job of this shape, including Hydra's own part."""
        cfg = self._new_copy()
        self._set_numbers(cfg, texts)
        for position in self._positions:
            cfg.hydra.overrides.task[position] = texts[position]
        names = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            as_hydra(texts), names.exclude_keys, names.item_sep, names.kv_sep
        )
        return cfg

    def views(self, texts: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """See `ComposedJob.views`."""
        if not self._positions:  # no other job has this template, so its copies would only take memory
            cfg = self._new_copy()
            return cfg, without_hydra(cfg)
        for cfg in self._shared:
            self._set_numbers(cfg, texts)
            OmegaConf.set_cache(cfg, self._cache)  # cached resolvers may depend on the numbers
        return self._shared

    def _set_numbers(self, cfg: DictConfig, texts: Sequence[str]) -> None:
        for override in (parse(texts[position]) for position in self._positions):
            OmegaConf.update(cfg, override.key, override.value, merge=True)  # as Hydra does


@dataclass(frozen=True)
class ComposedJob:
    """A job of a sweep whose overrides can be composed. It takes little memory, unlike its configuration.

    Attributes:
        overrides: the overrides with one value per key, without Hydra's own. Interpolations are resolved.
    """

    overrides: list[str]
    _texts: list[str]
    _template: _Template

    def composed(self) -> DictConfig:
        """A new copy of the configuration, including Hydra's own part. Takes a millisecond."""
        return self._template.compose(self._texts)

    def views(self) -> tuple[DictConfig, DictConfig]:
        """The configuration with and without Hydra's own part, for checking. Takes no time.

        They are to be read before the views of another job, which are the same objects. `hydra.overrides` and
        `hydra.job.override_dirname` may be those of another job.
        """
        return self._template.views(self._texts)


class JobComposer:
    """Composes the jobs of one sweep. The results are those of `laptime.config.compose.compose`."""

    def __init__(self, hydra: Hydra, config_name: str | None = None) -> None:
        self._hydra = hydra
        self._config_name = config_name
        self._first: DictConfig | None = None
        self._templates: dict[_Shape, _Template] = {}

    def compose(self, job: Sequence[str]) -> ComposedJob:
        """Compose a job.

        Args:
            job: its overrides with one value per key, including Hydra's own.

        Raises:
            UserError: see `laptime.config.compose.compose`.
        """
        parsed = [parse(text) for text in job]
        shape = tuple((one.key, type(one.value)) if _may_differ(one) else one.text for one in parsed)
        template = self._templates.get(shape)
        task = [one for one in parsed if not one.is_hydra_key]
        texts = [one.text for one in task]
        if template is not None and template.fits(texts):
            return _job(texts, template)
        cfg = compose(self._hydra, job, self._config_name)
        if self._first is None:
            self._first = cfg
        else:  # cached resolvers, e.g. of the time, have the same value in every run
            OmegaConf.copy_cache(self._first, cfg)
        if not _are_independent(parsed, cfg):
            return _job(texts, _Template(cfg, []))
        template = _Template(cfg, [position for position, one in enumerate(task) if _may_differ(one)])
        self._templates.setdefault(shape, template)
        return _job(texts, template)


def _job(texts: list[str], template: _Template) -> ComposedJob:
    overrides = texts
    if any("${" in text for text in texts):
        overrides = [str(text) for text in template.compose(texts).hydra.overrides.task]
    return ComposedJob(overrides, texts, template)


def _may_differ(override: Override) -> bool:
    """Whether jobs that differ in the value of this override may share a template, if no other override affects it."""
    is_plain = not (override.prefix or override.package or override.is_hydra_key)
    return is_plain and type(override.value) in (int, float, bool)


def _are_independent(parsed: Sequence[Override], composed: DictConfig) -> bool:
    """Whether no other override affects the numbers that may differ: the order of two such overrides would matter."""
    choices = composed.hydra.runtime.choices  # of groups, which are merged before all values
    keys = [one.key for one in parsed if one.full_key not in choices or isinstance(one.value, dict)]
    return all(
        sum(f"{key}.".startswith(f"{one.key}.") or f"{one.key}.".startswith(f"{key}.") for key in keys) == 1
        for one in parsed
        if _may_differ(one)
    )


def _copier(cfg: DictConfig) -> Callable[[], DictConfig]:
    """Return a function that copies a configuration as it is now."""
    try:
        return partial(pickle.loads, pickle.dumps(cfg))  # six times as fast as deepcopy
    except (pickle.PicklingError, AttributeError, TypeError):  # the schema of a user's plugin can't be pickled
        return partial(copy.deepcopy, copy.deepcopy(cfg))
