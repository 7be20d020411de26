"""Plan the runs of a sweep. The sweeper gets exactly the configurations that are composed and checked here."""

import hashlib
import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from laptime.config.compose import add_search_sweeper
from laptime.config.composition import hydra_groups
from laptime.config.job_composer import ComposedJob, JobComposer
from laptime.config.overrides import as_hydra, find, find_last, first_invalid, key_of
from laptime.config.quoting import how_to_quote
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.record.files import is_maximized
from laptime.record.score import Score
from laptime.sweeps.notice import with_notice

# All jobs are composed and checked before the first one starts.
_MAX_JOBS = 10_000
# Run directories are numbered: resuming, `laptime watch` and reports find runs by number.
_SUBDIR = "${hydra.job.num}"


def plan_runs(hydra: Hydra, cli_overrides: Sequence[str], config_name: str | None = None) -> list[ComposedJob]:
    """Plan one run for each combination of values. All runs of one seed come before those of the next.

    The values in `hydra.sweeper.params` of an experiment apply to the runs of that experiment, unless the command line
    sets the key. For a search, the result holds examples of trials: both ends of each range, and each listed value.

    Args:
        cli_overrides: the overrides of the command line, including Hydra's own.

    Raises:
        UserError: an override can't be parsed, or is not valid for a sweep.
    """
    cli_overrides = add_search_sweeper(cli_overrides)
    parsed = _parse_all(hydra.config_loader, cli_overrides)
    _refuse_swept_settings(parsed)
    if find(cli_overrides, "hydra.mode") is not None:
        raise UserError("hydra.mode: not supported. Leave it out; add -m (--multirun) for a sweep.")
    _refuse_params(parsed)
    composer = JobComposer(hydra, config_name)
    params: list[str] = []

    def composed_job(job: Sequence[str]) -> ComposedJob:
        try:
            return composer.compose(job)
        except UserError as error:
            raise _explain_missing_key(error, params, cli_overrides) from error

    sweeper = find_last(cli_overrides, "hydra/sweeper")
    if sweeper is not None and sweeper.value != "laptime":
        _require_one_seed(parsed)
        jobs = list(_candidate_jobs(parsed))
        params += params_of(composed_job(jobs[0]).composed())
        if params:
            jobs = list(_candidate_jobs(_parse_all(hydra.config_loader, [*params, *cli_overrides])))
    else:
        jobs = _all_jobs(hydra.config_loader, parsed, set(hydra_groups(hydra)), composed_job)
    planned = list(map(composed_job, with_notice(jobs, "composing")))
    first = planned[0].composed()
    _require_numbered_dirs(first)
    max_batch_size = first.hydra.sweeper.get("max_batch_size")
    if max_batch_size is not None:
        raise UserError(
            f"hydra.sweeper.max_batch_size={max_batch_size}: not supported, because the launcher limits the concurrent "
            f"runs. Use hydra/launcher=joblib hydra.launcher.n_jobs={max_batch_size}, or no launcher for one at a time."
        )
    return planned


def _explain_missing_key(error: UserError, params: Sequence[str], cli_overrides: Sequence[str]) -> UserError:
    """Replace the error about a key that a search or an experiment, not the user, sweeps over."""
    keys = [key_of(param) for param in params if key_of(param) not in map(key_of, cli_overrides)]
    key = _key_of_error(error)
    if key not in keys:
        return error
    group = key.partition(".")[0]
    option, search = find_last(cli_overrides, group), find(cli_overrides, "search", "experiment")
    chosen = f"the option of {group}" if option is None else option.text
    source = "the configuration" if search is None else search.text
    return UserError(
        f"{chosen}: has no key {key}, which {source} sweeps over. Choose another option, or define the search space "
        "yourself: hydra/sweeper=optuna with key=interval(low,high) for each dimension."
    )


def _key_of_error(error: BaseException | None) -> str:
    """Return the key that OmegaConf attached to an error or its cause; empty: none."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            return str(error.full_key)
        error = error.__cause__
    return ""


def _require_numbered_dirs(composed: DictConfig) -> None:
    # The text before interpolation. OmegaConf 2.3 has no public function for it (not reported).
    subdir = composed.hydra.sweep._get_node("subdir")._value()
    if subdir != _SUBDIR:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: run directories must be numbered, because sweep.resume, watch and reports "
            "find runs by number. Leave it out."
        )


def _all_jobs(
    config_loader: ConfigLoader,
    parsed: list[Override],
    groups: set[str],
    composed_job: Callable[[Sequence[str]], ComposedJob],
) -> list[list[str]]:
    """Return the overrides of each run, including Hydra's own."""
    _refuse_continuous_ranges(parsed)
    _refuse_too_many_jobs(parsed)
    jobs: list[list[str]] = []
    # An experiment may set its own `hydra.sweeper.params`, so each combination of options may sweep over other values.
    group_sweeps = [override for override in parsed if override.is_sweep_override() and override.key_or_group in groups]
    others = [override for override in parsed if override not in group_sweeps]
    by_params: dict[tuple[str, ...], list[list[str]]] = {}
    for options in itertools.product(*map(_values, group_sweeps)):
        first = next(_combinations([*others, *_parse_all(config_loader, options)]))
        by_params.setdefault(tuple(params_of(composed_job(first).composed())), []).append(list(options))
    if list(by_params) == [()]:
        return list(_combinations(parsed))
    for params, combinations in by_params.items():
        for combination in combinations:
            of_these = [*_parse_all(config_loader, params), *others, *_parse_all(config_loader, combination)]
            _refuse_continuous_ranges(of_these)
            _refuse_too_many_jobs(of_these)
            jobs += _combinations(of_these)
    seeds = list(dict.fromkeys(map(_seed_of, jobs)))
    return sorted(jobs, key=lambda job: seeds.index(_seed_of(job)))


def _parse_all(config_loader: ConfigLoader, overrides: Sequence[str]) -> list[Override]:
    if (refused := first_invalid(overrides)) is not None:
        if "=" not in refused.text:
            raise UserError(f"{refused.text}: must be a command or an override (key=value).") from refused.error
        if (choice := re.fullmatch(r"choice\((.*\bnull\b.*)\)", refused.value_text or "")) is not None:
            line = shlex.quote(refused.with_value(choice[1]))
            raise UserError(f"{refused.text}: Hydra accepts no null in choice(...). Type {line}.") from refused.error
        raise UserError(
            f"{refused.text}: not understood. Write key=value1,value2 to sweep over values. "
            f"{how_to_quote(refused.text)}"
        ) from refused.error
    return as_hydra(overrides, config_loader)


def params_of(composed: DictConfig) -> list[str]:
    """Return the sweep in a composed configuration (`hydra.sweeper.params`) as overrides."""
    params = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _combinations(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield every combination of values. Seeds are outermost, and the last override of a key counts."""
    seeds_first = sorted(overrides, key=lambda override: not _is_seed(override))
    yield from map(list, itertools.product(*map(_values, _last_of_each_key(seeds_first))))


def _last_of_each_key(overrides: Sequence[Override]) -> list[Override]:
    """Return the last override of each key. `key=` doesn't replace an earlier `+key=`, because it depends on it."""
    last: dict[str, Override] = {}
    for override in overrides:
        if override.is_force_add():
            bare = override.get_key_element().removeprefix("++")
            last.pop(bare, None)
            last.pop(f"+{bare}", None)
        last[override.get_key_element()] = override
    return list(last.values())


def _is_seed(override: Override) -> bool:
    return bool(override.key_or_group == "seed")


def _values(override: Override) -> list[str]:
    """Split a swept override into one override per value."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def _seed_of(job: Sequence[str]) -> str | None:
    seed = find_last(job, "seed")
    return None if seed is None else seed.text


def _candidate_jobs(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """Yield example jobs of a search. Checking them finds invalid values before the search starts.

    They have both ends of each range and each listed value, with the first value of other keys.
    """

    def values(override: Override) -> list[str]:
        value = override.value()
        if isinstance(value, IntervalSweep | RangeSweep):
            ends = [value.start, value.end] if isinstance(value, IntervalSweep) else [value.start]
            return [f"{override.get_key_element()}={end}" for end in ends]
        if isinstance(value, ChoiceSweep):
            key = override.get_key_element()
            # Hydra 1.3 has no public function that formats one of several values (not reported).
            return [f"{key}={override._get_value_element_as_str(item)}" for item in value.list]
        return [str(override.input_line)]

    dimensions = [values(override) for override in _last_of_each_key(parsed)]
    first = [overrides[0] for overrides in dimensions]
    yield first
    for position, overrides in enumerate(dimensions):
        for override in overrides[1:]:
            yield [*first[:position], override, *first[position + 1 :]]


def _refuse_swept_settings(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override() and override.is_hydra_override():
            param = str(override.input_line).removeprefix("hydra.sweeper.params.")
            fix = "Give it one value" if param == override.input_line else f"To search it, type {param}"
            raise UserError(
                f"{override.input_line}: Hydra's own settings apply to the whole sweep, so they can't be swept. {fix}."
            )


def _refuse_params(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.key_or_group.startswith("hydra.sweeper.params"):
            raise UserError(f"{override.input_line}: not supported. Sweep the keys themselves: key=value1,value2.")


def _refuse_continuous_ranges(parsed: Sequence[Override]) -> None:
    ranges = [str(one.input_line) for one in parsed if one.is_sweep_override() and not one.is_discrete_sweep()]
    if ranges:
        raise UserError(f"{ranges[0]}: a continuous range needs a search: hydra/sweeper=optuna.")


def _refuse_too_many_jobs(overrides: Sequence[Override]) -> None:
    """Refuse a sweep that would take hours to compose, before its jobs are listed."""
    effective = _last_of_each_key(overrides)
    total = math.prod(map(_num_values, effective))
    if total > _MAX_JOBS:
        longest = max(effective, key=_num_values)
        raise UserError(
            f"{longest.input_line}: the sweep would have {total:,.0f} runs; the maximum is {_MAX_JOBS:,}. "
            "Sweep over fewer values."
        )


def _num_values(override: Override) -> float:
    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def refuse_repeated_runs(runs: Sequence[ComposedJob], configs: Sequence[Config]) -> None:
    """Refuse two runs with the same configuration, including the seed: they would count as repeats.

    Args:
        configs: the configurations of the runs, in the same order.
    """
    before: dict[bytes, ComposedJob] = {}
    for run, config in zip(runs, configs, strict=True):
        earlier = before.setdefault(hashlib.sha256(repr(config).encode()).digest(), run)
        if earlier is not run:
            shared = set.intersection(*(set(planned.overrides) for planned in runs))
            swept = [override for override in run.overrides if override not in shared] or run.overrides
            raise UserError(
                f"{' '.join(swept)}: two runs of the sweep have this configuration. Give repeats different seeds."
            )


def _require_one_seed(parsed: Sequence[Override]) -> None:
    """Refuse several seeds in a search, which would pick the luckiest one instead of repeating trials."""
    for override in parsed:
        if override.is_sweep_override() and _is_seed(override):
            raise UserError(
                f"{override.input_line}: a search would pick the luckiest seed. Give the search one seed, and repeat "
                "the best trials in a separate sweep."
            )


def num_trials(composed: DictConfig) -> int | None:
    """Return the maximum number of trials of a search; None: not a search."""
    trials = OmegaConf.select(composed, "hydra.sweeper.n_trials")
    return None if trials is None else int(trials)


def require_search(composed: DictConfig, num_trials: int, score: Score) -> None:
    """Refuse a search without an objective, or with the wrong direction.

    Args:
        score: the score of the task.

    Raises:
        UserError: a setting is missing or wrong.
    """
    if num_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={num_trials}: must be at least 1.")
    n_jobs = OmegaConf.select(composed, "hydra.sweeper.n_jobs")
    if n_jobs is not None and n_jobs < 1:
        raise UserError(f"hydra.sweeper.n_jobs={n_jobs}: must be at least 1.")
    rate = OmegaConf.select(composed, "hydra.sweeper.max_failure_rate")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate={rate}: must be between 0 and 1.")
    if composed.measure.target_interval is not None:
        raise UserError(f"measure.target_interval={composed.measure.target_interval}: not supported with a search.")
    metrics, directions = composed.optimized_metric, OmegaConf.select(composed, "hydra.sweeper.direction")
    names = [str(metric) for metric in metrics] if OmegaConf.is_list(metrics) else [str(metrics)]
    if metrics is None:
        raise UserError("optimized_metric=null: a search needs an objective, like optimized_metric=val_score.")
    for name in names:
        if name.startswith("val_") and not OmegaConf.select(composed, "dataset.val_fraction", default=1):
            raise UserError(f"optimized_metric={name}: needs validation data, but dataset.val_fraction=0.")
    directions = list(directions) if OmegaConf.is_list(directions) else [directions]
    configured = [str(getattr(direction, "name", direction)) for direction in directions]
    required = ["maximize" if is_maximized(name, score) else "minimize" for name in names]
    if configured != required:
        shown = [
            f"[{','.join(values)}]" if OmegaConf.is_list(metrics) else values[0]
            for values in (configured, required, names)
        ]
        raise UserError(
            f"hydra.sweeper.direction={shown[0]}: with optimized_metric={shown[2]} it must be "
            f"'hydra.sweeper.direction={shown[1]}'."
        )
