"""The runs of a sweep, planned once: what is composed and checked here is what the sweeper is handed."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from laptime.config.compose import add_search_sweeper, compose
from laptime.config.composition import hydra_groups
from laptime.config.overrides import as_hydra, find, find_last, first_invalid, key_of
from laptime.config.quoting import how_to_quote
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.record.files import is_maximized

# Each is composed and checked before the first starts.
_MAX_JOBS = 10_000
# The place of a run is its number: resuming, watching and reports go by it.
_SUBDIR = "${hydra.job.num}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        overrides: of this run alone, nothing left to sweep over; without Hydra's own.
        composed: what they compose to, Hydra's own part included.
    """

    overrides: list[str]
    composed: DictConfig


def plan_runs(hydra: Hydra, typed: Sequence[str], config_name: str | None = None) -> list[PlannedRun]:
    """The runs that overrides with several values stand for, those of one seed before those of the next.

    What an experiment sweeps over (`hydra.sweeper.params`) holds for the runs of that experiment, and gives way to what
    is typed. A sweeper that chooses its runs as it goes gets examples: both ends of each range, and each value.

    Args:
        typed: overrides, Hydra's own included.

    Raises:
        UserError: an override can't be understood, or makes no sense for a sweep.
    """
    typed = add_search_sweeper(typed)
    parsed = _parse_all(hydra.config_loader, typed)
    _refuse_swept_settings(parsed)
    if find(typed, "hydra.mode") is not None:
        raise UserError("hydra.mode: is chosen by the flag -m (--multirun). Leave it out.")
    _refuse_params(parsed)
    composed: dict[tuple[str, ...], DictConfig] = {}
    params: list[str] = []

    def composed_of(job: Sequence[str]) -> DictConfig:
        if tuple(job) not in composed:
            try:
                composed[tuple(job)] = compose(hydra, job, config_name)
            except UserError as error:
                raise _explain_missing_key(error, params, typed) from error
            if len(composed) > 1:  # what is asked for once, like the time of day, is the same in every run
                OmegaConf.copy_cache(next(iter(composed.values())), composed[tuple(job)])
        return composed[tuple(job)]

    sweeper = find_last(typed, "hydra/sweeper")
    if sweeper is not None and sweeper.value != "laptime":
        _require_one_seed(parsed)
        jobs = list(_candidate_jobs(parsed))
        params += params_of(composed_of(jobs[0]))
        if params:
            jobs = list(_candidate_jobs(_parse_all(hydra.config_loader, [*params, *typed])))
    else:
        jobs = _all_jobs(hydra.config_loader, parsed, set(hydra_groups(hydra)), composed_of)
    planned = [PlannedRun([str(each) for each in cfg.hydra.overrides.task], cfg) for cfg in map(composed_of, jobs)]
    _require_numbers(planned[0].composed)
    most = planned[0].composed.hydra.sweeper.get("max_batch_size")
    if most is not None:
        raise UserError(
            f"hydra.sweeper.max_batch_size={most}: how many runs go on at once is the launcher's matter: "
            f"hydra/launcher=joblib hydra.launcher.n_jobs={most}, or one after the other without a launcher."
        )
    return planned


def _explain_missing_key(error: UserError, params: Sequence[str], typed: Sequence[str]) -> UserError:
    """What is wrong with a key that nobody typed: a search or an experiment sweeps over it."""
    keys = [key_of(each) for each in params if key_of(each) not in map(key_of, typed)]
    key = _key_of_error(error)
    if key not in keys:
        return error
    group = key.partition(".")[0]
    option, search = find_last(typed, group), find(typed, "search", "experiment")
    chosen = f"the option of {group}" if option is None else option.text
    source = "the configuration" if search is None else search.text
    return UserError(
        f"{chosen}: {source} chooses values of {key}, and {chosen} has no such key. Choose another option, or a space "
        "of your own: hydra/sweeper=optuna with key=interval(low,high) for each dimension."
    )


def _key_of_error(error: BaseException | None) -> str:
    """The key that OmegaConf says an error is about; empty: none."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            return str(error.full_key)
        error = error.__cause__
    return ""


def _require_numbers(composed: DictConfig) -> None:
    subdir = composed.hydra.sweep._get_node("subdir")._value()
    if subdir != _SUBDIR:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: the runs of a sweep are named by their numbers, by which sweep.resume, "
            "watch and the report know them. Leave it out."
        )


def _all_jobs(
    config_loader: ConfigLoader,
    parsed: list[Override],
    groups: set[str],
    composed_of: Callable[[Sequence[str]], DictConfig],
) -> list[list[str]]:
    """The overrides of each run, Hydra's own included."""
    _require_steps(parsed)
    _require_few_enough(parsed)
    jobs: list[list[str]] = []
    # Each combination of options may come with values of its own to sweep over: experiments do.
    chosen = [each for each in parsed if each.is_sweep_override() and each.key_or_group in groups]
    others = [each for each in parsed if each not in chosen]
    by_params: dict[tuple[str, ...], list[list[str]]] = {}
    for options in itertools.product(*map(_values, chosen)):
        first = next(_combinations([*others, *_parse_all(config_loader, options)]))
        by_params.setdefault(tuple(params_of(composed_of(first))), []).append(list(options))
    if list(by_params) == [()]:
        return list(_combinations(parsed))
    for params, combinations in by_params.items():
        for combination in combinations:
            of_these = [*_parse_all(config_loader, params), *others, *_parse_all(config_loader, combination)]
            _require_steps(of_these)
            _require_few_enough(of_these)
            jobs += _combinations(of_these)
    seeds = list(dict.fromkeys(map(_seed_of, jobs)))
    return sorted(jobs, key=lambda job: seeds.index(_seed_of(job)))


def _parse_all(config_loader: ConfigLoader, overrides: Sequence[str]) -> list[Override]:
    if (refused := first_invalid(overrides)) is not None:
        raise UserError(
            f"{refused.text}: not understood. Write key=value1,value2 to sweep over values. "
            f"{how_to_quote(refused.text)}"
        ) from refused.error
    return as_hydra(overrides, config_loader)


def params_of(composed: DictConfig) -> list[str]:
    """What a composed configuration sweeps over by itself, as overrides."""
    params = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _combinations(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Every combination of values, seeds outermost wherever they were typed. The last override of a key counts."""
    seeds_first = sorted(overrides, key=lambda override: not _is_seed(override))
    yield from map(list, itertools.product(*map(_values, _last_of_each_key(seeds_first))))


def _last_of_each_key(overrides: Sequence[Override]) -> list[Override]:
    """Of several overrides of one key the last. `key=` stands beside an earlier `+key=`, on which it depends."""
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
    """An override for each of its values."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def _seed_of(job: Sequence[str]) -> str | None:
    seed = find_last(job, "seed")
    return None if seed is None else seed.text


def _candidate_jobs(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """Jobs that a sweeper could choose: both ends of each range, and each of several values, beside the first of the
    others. What is wrong with one of them is found before the search starts."""

    def values(override: Override) -> list[str]:
        value = override.value()
        if isinstance(value, IntervalSweep | RangeSweep):
            ends = [value.start, value.end] if isinstance(value, IntervalSweep) else [value.start]
            return [f"{override.get_key_element()}={end}" for end in ends]
        if isinstance(value, ChoiceSweep):
            key = override.get_key_element()
            return [f"{key}={override._get_value_element_as_str(each)}" for each in value.list]
        return [str(override.input_line)]

    of_each = [values(each) for each in _last_of_each_key(parsed)]
    first = [each[0] for each in of_each]
    yield first
    for place, others in enumerate(of_each):
        for other in others[1:]:
            yield [*first[:place], other, *first[place + 1 :]]


def _refuse_swept_settings(parsed: Sequence[Override]) -> None:
    for each in parsed:
        if each.is_sweep_override() and each.is_hydra_override():
            within = str(each.input_line).removeprefix("hydra.sweeper.params.")
            instead = "Give it one value" if within == each.input_line else f"To search it, type {within}"
            raise UserError(f"{each.input_line}: Hydra's own settings hold for the whole sweep. {instead}.")


def _refuse_params(parsed: Sequence[Override]) -> None:
    for each in parsed:
        if each.key_or_group.startswith("hydra.sweeper.params"):
            raise UserError(f"{each.input_line}: type the keys themselves: key=value1,value2.")


def _require_steps(parsed: Sequence[Override]) -> None:
    ranges = [str(each.input_line) for each in parsed if each.is_sweep_override() and not each.is_discrete_sweep()]
    if ranges:
        raise UserError(f"{ranges[0]}: a range without steps needs a sweeper that draws from it: hydra/sweeper=optuna.")


def _require_few_enough(overrides: Sequence[Override]) -> None:
    """Refuse what would be composed for hours, before anything of it is made."""
    effective = _last_of_each_key(overrides)
    total = math.prod(map(_num_values, effective))
    if total > _MAX_JOBS:
        longest = max(effective, key=_num_values)
        raise UserError(
            f"{longest.input_line}: makes {total:,.0f} runs in all; a sweep may have {_MAX_JOBS:,}. "
            "Sweep over fewer values."
        )


def _num_values(override: Override) -> float:
    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def refuse_repeated_runs(runs: Sequence[PlannedRun], configs: Sequence[Config]) -> None:
    """Refuse a sweep of which two runs are the same, seed included: they would count as repeats.

    Args:
        configs: of the runs, in their order.
    """
    before: dict[bytes, PlannedRun] = {}
    for run, config in zip(runs, configs, strict=True):
        earlier = before.setdefault(hashlib.sha256(repr(config).encode()).digest(), run)
        if earlier is not run:
            shared = set.intersection(*(set(each.overrides) for each in runs))
            swept = [override for override in run.overrides if override not in shared] or run.overrides
            raise UserError(f"{' '.join(swept)}: the same run twice. Repeats of a run differ by their seed.")


def _require_one_seed(parsed: Sequence[Override]) -> None:
    """Refuse to search for the luckiest seed, which is what a sweeper that chooses would make of several."""
    for each in parsed:
        if each.is_sweep_override() and _is_seed(each):
            raise UserError(
                f"{each.input_line}: a search does not repeat its trials, it would choose the luckiest seed. Give it "
                "one; repeat the best trials afterwards, in a sweep of their own."
            )


def require_search(composed: DictConfig, num_trials: int) -> None:
    """Refuse a search that would find nothing, or the worst.

    Raises:
        UserError: says what is missing, or which directions the metrics have.
    """
    if num_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={num_trials}: must be at least 1.")
    num_at_once = OmegaConf.select(composed, "hydra.sweeper.n_jobs")
    if num_at_once is not None and num_at_once < 1:
        raise UserError(f"hydra.sweeper.n_jobs={num_at_once}: must be at least 1.")
    rate = OmegaConf.select(composed, "hydra.sweeper.max_failure_rate")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate={rate}: must be a share from 0 to 1.")
    if composed.measure.target_interval is not None:
        raise UserError(f"measure.target_interval={composed.measure.target_interval}: not with a sweeper that chooses.")
    metrics, asked = composed.optimized_metric, OmegaConf.select(composed, "hydra.sweeper.direction")
    names = [str(each) for each in metrics] if OmegaConf.is_list(metrics) else [str(metrics)]
    if metrics is None:
        raise UserError("optimized_metric=null: a search needs an objective, like optimized_metric=val_accuracy.")
    for name in names:
        if name.startswith("val_") and not OmegaConf.select(composed, "dataset.val_fraction", default=1):
            raise UserError(f"optimized_metric={name}: needs validation, and dataset.val_fraction=0 leaves none.")
    asked = list(asked) if OmegaConf.is_list(asked) else [asked]
    given = [str(getattr(each, "name", each)) for each in asked]
    wanted = ["maximize" if is_maximized(name) else "minimize" for name in names]
    if given != wanted:
        shown = [f"[{','.join(each)}]" if OmegaConf.is_list(metrics) else each[0] for each in (given, wanted, names)]
        raise UserError(
            f"hydra.sweeper.direction={shown[0]}: with optimized_metric={shown[2]} it must be "
            f"'hydra.sweeper.direction={shown[1]}'."
        )
