"""Going on with an earlier sweep (`sweep.resume`): which of its runs stand, which are retried, and what is new.

Nothing is written here before a run starts; the command line says what was decided and does it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import psutil
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from laptime.config import security
from laptime.config.compose import CONFIG_NAME, key_of
from laptime.config.schema import config_hashes, resolve_warmup_epochs
from laptime.config.typed import how_to_quote
from laptime.errors import UserError, few
from laptime.machine.device import cpu_name, usable_cores
from laptime.machine.environment import code_hash, environment, git_state
from laptime.record.directory import expanded, hostname_hash, numbered_runs, use, user_of
from laptime.record.files import (
    EARLIER_DIR,
    RUN_FILE,
    SWEEP_FILE,
    parse_timestamp,
    read_epochs,
    read_plan,
    read_record,
    write_atomically,
)
from laptime.record.latest import newest_sweeps
from laptime.record.masking import mask_command
from laptime.runner.plan import num_ranks, threads_per_rank, will_be_hashed
from laptime.sweeps.core_shares import CoreShares
from laptime.terminal import relative
from laptime.training.checkpoints import last_whole

KEY = "sweep.resume"
# Chosen by the sweep that is gone on with.
_FIXED = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.mode", "hydra/sweeper")
# Of a record that can be read at all.
_NEEDED: dict[str, Any] = {
    "status": str, "error": (dict, NoneType), "started_at": str, "config": dict, "strategy": dict, "attempts": list,
    "environment": (dict, NoneType), "config_hash": (str, NoneType), "hashed_config": (dict, NoneType),
}  # fmt: skip
# Clocks and file systems may differ by so much about when something happened.
_CLOCK_S = 10.0


@dataclass(frozen=True)
class Job:
    """A run as it would be now.

    Attributes:
        invocation: of what was typed at different times it follows from; what follows twice from one was meant twice.
        overrides: of this job alone, nothing left to sweep over.
        config: resolved, plain values.
    """

    overrides: list[str]
    config: Mapping[str, Any]
    invocation: int = 0


@dataclass(frozen=True)
class EarlierRun:
    """A run directory of the sweep.

    Attributes:
        record: run.json; empty: it ended before it had one that can be read.
        overrides: as Hydra keeps them beside the run.
    """

    number: int
    path: Path
    record: Mapping[str, Any]
    overrides: list[str]

    @property
    def is_completed(self) -> bool:
        return bool(self.record.get("status") == "completed")

    @property
    def config_hash(self) -> str | None:
        return self.record.get("config_hash")

    @property
    def is_nameless(self) -> bool:
        """Whether it ended before it could say what it was."""
        return not self.record and not self.overrides

    @property
    def label(self) -> str:
        """What tells it from the others of its sweep: its TensorBoard events lie below it."""
        return str(self.record["config"]["run_label"])

    @property
    def how_it_ended(self) -> str:
        if not self.record:
            return "has no run.json that can be read"
        status = "was killed" if self.record["status"] == "running" else str(self.record["status"])
        message = str((self.record["error"] or {}).get("message") or "").partition("\n")[0]
        return f"{status} ({message})" if message else status


@dataclass(frozen=True)
class Step:
    """What becomes of one job.

    Attributes:
        number: of the run, and its directory's name.
        decision: in words.
        run: that has the directory already; None: none has.
        is_done: it is completed; nothing is to be done.
        goes_on: from what it has: its last checkpoint, if it has one. Otherwise what it has is set aside.
    """

    number: int
    overrides: list[str]
    decision: str
    run: EarlierRun | None = None
    is_done: bool = False
    goes_on: bool = False


class EarlierSweep:
    """A sweep directory that nobody is writing to.

    Args:
        asked: the value of `sweep.resume`: a directory, or latest.
        only_looks: nothing is written, and nothing will be.

    Attributes:
        path: absolute.
        runs: its directories.
        had_notify: a command was typed that told how it went (`sweep.notify`).

    Raises:
        UserError: there is none, it is no sweep that can be gone on with, or it is still running.
    """

    def __init__(self, asked: str, only_looks: bool = False) -> None:
        self.asked = f"{KEY}={asked}"
        found = next(iter(newest_sweeps()), None) if asked == "latest" else expanded(KEY, asked)
        if found is None:
            raise UserError(f"{self.asked}: there is no sweep below multirun/.")
        if not found.is_dir():
            raise UserError(f"{self.asked}: there is no such directory. Name a sweep's, or latest.{_known()}")
        if not (found / SWEEP_FILE).is_file():
            raise UserError(
                f"{self.asked}: is no sweep, it has no {SWEEP_FILE}. Name a sweep's directory, or latest.{_known()}"
            )
        self.path = found.absolute()
        self.had_notify = False
        self._typed = [*self._typed_before(), self._typed_in(self.path / SWEEP_FILE)]
        # Taken before anything is looked at that another might change.
        pid = user_of(self.path) if only_looks else use(self.path)
        if pid is not None:
            process = f" (process {pid})" if pid else ""
            raise UserError(f"{self.asked}: this sweep is still running{process}. Wait, or end it first.")
        self.runs = [_read(number, path, self._kept_in) for number, path in sorted(numbered_runs(self.path).items())]
        self._refuse_if_in_use()

    def invocations(self, typed: Sequence[str]) -> list[list[str]]:
        """What to make jobs of: what the sweep was started with, and after it what is typed now; where that is
        nothing, whatever has been typed for it until now.

        Raises:
            UserError: what is typed can't be changed any more.
        """
        if not typed:
            return self._typed
        for override in typed:
            if key_of(override) in _FIXED:
                raise UserError(f"{override}: is what it was when the sweep started. Leave it out, or {KEY}.")
        return [merged(self._typed[0], typed)]

    def require_same_configuration(self, config_name: str | None, config_dir: str | None) -> None:
        """Refuse to compose the runs from other files than those of the sweep.

        Args:
            config_name, config_dir: of the flags that are typed now. They are not taken from the sweep's own files,
                which could name any folder.
        """
        for flag, before, now in (
            ("--config-name", self._config_name, config_name),
            ("--config-dir", self._config_dir, config_dir),
        ):
            if before is not None and now is None:
                raise UserError(f"{self.asked}: this sweep was started with {flag} {before}. Type that again.")
            if before is None and now is not None:
                raise UserError(f"{self.asked}: this sweep was started without {flag}. Leave it out.")
        if self._config_name != config_name:
            raise UserError(
                f"{self.asked}: this sweep was started with --config-name {self._config_name}, not {config_name}."
            )

    def keep_what_was_typed(self, overrides: Sequence[str]) -> None:
        """Keep a copy of Hydra's file of what was typed last, before it is replaced by something else."""
        if list(overrides) != self._typed[-1]:
            number = len(list(self._typed_before()))
            write_atomically(self.path / f"multirun-{number}.yaml", (self.path / SWEEP_FILE).read_bytes())

    def unfinished(self) -> list[list[str]]:
        """The overrides of each run that is not completed: repeats that the sweep added by itself are among them."""
        return [_lasting(run.overrides) for run in self.runs if not run.is_completed and run.overrides]

    def sweep_world_size(self, configs: Sequence[Mapping[str, Any]], shares: CoreShares | None = None) -> int:
        """A largest world size that gives `strategy.threads_per_rank=auto` the threads that it has had so far.

        Args:
            configs: of the jobs now.
            shares: of the cores; None: each run has all.

        Raises:
            UserError: none does.
        """
        largest = max(num_ranks(config) for config in configs)
        automatic = [config for config in configs if config["strategy"]["threads_per_rank"] == "auto"]
        records = [run.record for run in self.runs if run.config_hash is not None]
        so_far = {
            record["strategy"]["threads_per_rank"]
            for record in records
            if record["config"]["strategy"]["threads_per_rank"] == "auto"
        }
        if not automatic or not so_far:
            return largest
        at_once = 1 if shares is None else shares.num
        largest = max(largest, usable_cores() // at_once // max(so_far))
        for config in automatic:
            threads = threads_per_rank(config, largest * at_once)
            if threads not in so_far:
                before = " or ".join(map(str, sorted(so_far)))
                each = f" in each of {at_once} runs at once" if at_once > 1 else ""
                raise UserError(
                    f"strategy.threads_per_rank=auto: is {threads} with up to {largest} ranks{each} on "
                    f"{usable_cores()} cores, and was {before} in {self.path.name}: the figures would not compare. "
                    f"Choose strategy.threads_per_rank={before}, or start a new sweep."
                )
        return largest

    def plan(self, jobs: Sequence[Job], sweep_world_size: int, shares: CoreShares | None = None) -> list[Step]:
        """What becomes of each job, in the order of the jobs: each configuration as often as one invocation has it."""
        at_once = 1 if shares is None else shares.num
        wanted = _each_once([(job, will_be_hashed(job.config, sweep_world_size, at_once)) for job in jobs])
        hashes = [config_hashes(content)[0] for _, content in wanted]
        same = self._same(wanted, hashes)
        left = [run for run in self.runs if run.config_hash not in hashes]
        never_begun, nameless = self.never_begun(), {run.number: run for run in self.runs if run.is_nameless}
        number = max([*(run.number for run in self.runs), *never_begun], default=-1) + 1
        # Of what ended before it could say what it was, the numbers are taken again, by the plan or in the jobs' order.
        free = [each for each in nameless if each not in never_begun]
        steps = []
        for (job, content), run in zip(wanted, same, strict=True):
            alike = [each for each in left if _typed_alike(each, job)]
            run = run or next((each for each in alike if not each.is_completed), None)
            if run is not None and run.is_completed:
                steps.append(_stands(run, job))
            elif run is not None:
                left = [each for each in left if each is not run]
                steps.append(_retried(run, job, content))
            else:
                decision = f"new{_changed_since(alike[0], content) if alike else ''}"
                own = next((each for each, swept in never_begun.items() if _is_planned_as(job.overrides, swept)), None)
                if own is not None:
                    del never_begun[own]
                elif free:
                    own = free.pop(0)
                else:
                    own, number = number, number + 1
                steps.append(Step(own, job.overrides, decision, nameless.get(own)))
        return steps

    def _same(
        self, wanted: "Sequence[tuple[Job, Mapping[str, Any]]]", hashes: Sequence[str]
    ) -> list[EarlierRun | None]:
        """For each job the run of the same configuration: the one of the same overrides, or else a completed one."""
        left = list(self.runs)
        found: list[EarlierRun | None] = [None] * len(wanted)
        for suits in (_typed_alike, lambda run, job: run.is_completed, lambda run, job: True):
            for place, (job, _) in enumerate(wanted):
                run = next((each for each in left if each.config_hash == hashes[place] and suits(each, job)), None)
                if found[place] is None and run is not None:
                    found[place] = run
                    left.remove(run)
        return found

    def not_asked_for(self, steps: Sequence[Step]) -> list[Step]:
        """What is to be known of the runs that none of the jobs is."""
        found = []
        for run in self.runs:
            if any(step.run is run for step in steps):
                continue
            if not run.is_completed:
                decision = f"{run.how_it_ended}, not among these jobs: left as it is"
            elif changed := _measured_with(run, run.record["config"]):
                decision = f"completed{changed}"
            else:
                continue
            found.append(Step(run.number, run.overrides, decision, run, is_done=True))
        for number, swept in self.never_begun().items():
            if all(step.number != number for step in steps):
                decision = f"never began, not among these jobs: {KEY} without other values runs it"
                found.append(Step(number, swept.split(), decision, is_done=True))
        return found

    def never_begun(self) -> dict[int, str]:
        """What is swept in the runs that the sweep was to have and has no directory for, by number."""
        here = {run.number for run in self.runs if not run.is_nameless}
        return {number: swept for number, swept in read_plan(self.path).items() if number not in here}

    def _typed_before(self) -> Iterator[list[str]]:
        number = 0
        while (path := self.path / f"multirun-{number}.yaml").is_file():
            yield self._typed_in(path)
            number += 1

    def _typed_in(self, path: Path) -> list[str]:
        try:
            hydra = yaml.safe_load(path.read_text("utf-8"))["hydra"]
            typed = [str(each) for each in [*hydra["overrides"]["task"], *hydra["overrides"]["hydra"]]]
            self.had_notify |= any(key_of(each) == security.NOTIFY_KEY for each in typed)
            name = hydra["job"].get("config_name")
            self._config_name = None if name in (None, CONFIG_NAME) else str(name)
            sources = hydra["runtime"].get("config_sources") or []
            folders = [str(each["path"]) for each in sources if each["provider"] == "command-line"]
            self._config_dir = folders[0] if folders else None
            self._kept_in = hydra.get("output_subdir", ".hydra")
            why_not = _why_not_resumed(hydra)
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
            raise UserError(f"{self.asked}: {path.name} is not what Hydra writes ({type(error).__name__}).") from error
        if why_not is not None:
            raise UserError(f"{self.asked}: {why_not}")
        return _lasting(typed)

    def _refuse_if_in_use(self) -> None:
        for run in self.runs:
            pids = living_ranks(run)
            if pids:
                raise UserError(
                    f"{self.asked}: run {run.number} is still running (process {', '.join(map(str, pids))}). Wait, or "
                    "end it first."
                )


def can_be_resumed(sweep_dir: Path) -> bool:
    """Whether `sweep.resume` takes a sweep when it has ended."""
    try:
        return _why_not_resumed(yaml.safe_load((sweep_dir / SWEEP_FILE).read_text("utf-8"))["hydra"]) is None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return False


def _why_not_resumed(hydra: Mapping[str, Any]) -> str | None:
    """Why a sweep with these settings of Hydra's can't be resumed; None: it can."""
    if not str(hydra["sweeper"]["_target_"]).endswith("RepeatingSweeper"):
        return "is a search, whose sweeper chose its trials as it went. Start a new one."
    if (subdir := hydra["sweep"]["subdir"]) != "${hydra.job.num}":
        return f"hydra.sweep.subdir={subdir} gave its runs no numbers. Start a new sweep."
    if hydra.get("output_subdir", ".hydra") is None:
        return "hydra.output_subdir=null kept nothing of what its runs were given. Start a new sweep."
    return None


def _known() -> str:
    """The newest sweeps that could be meant, as a second line."""
    names = ", ".join(map(str, newest_sweeps()[:5]))
    return f"\nThe newest: {names}." if names else ""


def _each_once(jobs: Sequence[tuple[Job, dict[str, Any]]]) -> list[tuple[Job, dict[str, Any]]]:
    """Of jobs of one configuration those of the invocation that has most of them."""
    by_hash: dict[str, dict[int, list[tuple[Job, dict[str, Any]]]]] = {}
    for job, content in jobs:
        of_hash = by_hash.setdefault(config_hashes(content)[0], {})
        of_hash.setdefault(job.invocation, []).append((job, content))
    kept = [id(job) for of_hash in by_hash.values() for job, _ in max(of_hash.values(), key=len)]
    return [(job, content) for job, content in jobs if id(job) in kept]


def _typed_alike(run: EarlierRun, job: Job) -> bool:
    return set(_lasting(run.overrides)) == set(_lasting(job.overrides))


def _is_planned_as(overrides: Sequence[str], swept: str) -> bool:
    """Whether a job is the one that a sweep's plan knows by what is swept in it."""
    return set(swept.split()) <= set(" ".join(mask_command(overrides)).split())


def _lasting(overrides: Sequence[str]) -> list[str]:
    """What a run, or a sweep, was given that holds when it is gone on with, too."""
    # Hydra imports what its own part names, and sets variables by it: no file's matter. What may be named is checked
    # against what is typed now, so that it isn't lost without a word.
    left_out = {*security.OF_NOW} - {security.KEY}
    return [
        each for each in overrides if key_of(each) not in left_out and not key_of(each).startswith(("hydra.", "hydra/"))
    ]


def is_of_now(override: str) -> bool:
    """Whether it is said anew each time, and makes no other jobs: how they are launched, and who is told."""
    key = key_of(override)
    return key in security.OF_NOW or (key.startswith(("hydra.", "hydra/")) and key not in _FIXED)


def asked_for(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `sweep.resume` was set to, None: it was not, and the other overrides.

    Raises:
        UserError: it is not one directory.
    """
    own = [override for override in overrides if override.lstrip("+").partition("=")[0] == KEY]
    rest = [override for override in overrides if override not in own]
    if not own:
        return None, rest
    try:
        (value,) = OverridesParser.create().parse_overrides(own[-1:])
    except HydraException as error:
        raise UserError(f"{own[-1]}: not understood. {how_to_quote(own[-1])}") from error
    if value.is_sweep_override():
        raise UserError(f"{own[-1]}: goes on with one sweep at a time.")
    return (None if value.value() is None else str(value.value())), rest


def merged(before: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Overrides of which later ones replace earlier ones of the same key or group.

    What replaces an addition (`+key=...`) is one itself, and taking it away (`~key`) leaves nothing.
    """
    parser = OverridesParser.create()
    result: dict[str, Override] = {}
    try:
        for override in parser.parse_overrides([*before, *typed]):
            key = override.get_key_element().lstrip("+~")
            earlier = result.get(key)
            if earlier is not None and earlier.is_add():
                if override.is_delete():
                    del result[key]
                    continue
                if not override.is_add() and not override.is_force_add():
                    (override,) = parser.parse_overrides([f"+{override.input_line}"])
            result[key] = override
    except HydraException as error:
        raise UserError(
            f"{str(error).splitlines()[0]}. Use group=option or key=value; a value with special characters takes "
            "quotes of its own: 'key=\"...\"'."
        ) from error
    return [str(override.input_line) for override in result.values()]


def jobs_ever(runs: Sequence[EarlierRun], jobs: Sequence[Job]) -> list[list[str]]:
    """The overrides of the earlier runs and of the jobs now, to tell each from the others by what was swept: what all
    jobs share now is no difference from a run that was not given it."""
    shared = set.intersection(*(set(job.overrides) for job in jobs))
    earlier = []
    for run in runs:
        keys = {override.partition("=")[0] for override in run.overrides}
        earlier.append([*run.overrides, *(each for each in shared if each.partition("=")[0] not in keys)])
    return [*earlier, *(job.overrides for job in jobs)]


def set_aside(run_dir: Path) -> None:
    """Move what a run has left behind to earlier/0/, the next time to earlier/1/, so that it starts afresh."""
    earlier = run_dir / EARLIER_DIR
    place = earlier / str(max(numbered_runs(earlier), default=-1) + 1 if earlier.is_dir() else 0)
    place.mkdir(parents=True)
    for entry in run_dir.iterdir():
        if entry != earlier and not entry.name.startswith("."):  # Hydra's files are this start's already
            entry.rename(place / entry.name)


def living_ranks(run: EarlierRun) -> list[int]:
    """The ranks' processes of a run that says it is running, as far as they are there, and no others of their pid.

    Those of another machine can't be seen from here.
    """
    if run.record.get("status") != "running":
        return []
    if (run.record["environment"] or {}).get("hostname_hash") != hostname_hash():
        return []
    alive = []
    first = parse_timestamp(run.record["started_at"]) - _CLOCK_S
    last = (run.path / RUN_FILE).stat().st_mtime + _CLOCK_S
    for pid in run.record["strategy"]["rank_pids"] or []:
        try:
            process = psutil.Process(pid)
            if first <= process.create_time() <= last and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.Error:
            pass
    return alive


def _read(number: int, path: Path, kept_in: str) -> EarlierRun:
    """A run's record and overrides; `kept_in` is Hydra's folder in its directory (`hydra.output_subdir`)."""
    try:
        record = read_record(path)
    except (OSError, ValueError, RecursionError):
        record = {}
    if not _is_whole(record):
        record = {}
    try:
        text = (path / kept_in / "overrides.yaml").read_text("utf-8")
        overrides = [str(each) for each in yaml.safe_load(text) or []]
        OverridesParser.create().parse_overrides(overrides)
    except (OSError, ValueError, TypeError, yaml.YAMLError, HydraException, RecursionError):
        overrides = []
    return EarlierRun(number, path, record, overrides)


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether all is there that is asked of a record below."""
    if not all(isinstance(record.get(key), kind) for key, kind in _NEEDED.items()):
        return False
    try:
        _ = record["strategy"]["rank_pids"], record["strategy"]["threads_per_rank"], record["config"]["run_label"]
        _ = record["config"]["strategy"]["threads_per_rank"], parse_timestamp(record["started_at"])
        if record["environment"]:
            _ = record["environment"]["code_hash"], record["environment"]["packages"]["torch"], record["git"]["commit"]
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _stands(run: EarlierRun, job: Job) -> Step:
    return Step(run.number, job.overrides, f"completed, skipped{_measured_with(run, job.config)}", run, is_done=True)


def _measured_with(run: EarlierRun, config: Mapping[str, Any]) -> str:
    """What a completed run does not share with new ones beside its configuration, in words; empty: nothing."""
    others, commits = _conditions_changed(run, config)
    if others:
        return (
            f"; measured with other {few(others)}: its figures don't compare with new ones, delete "
            f"{relative(run.path)} to run it again"
        )
    return f"; of the same code at another {commits}" if commits else ""


def _retried(run: EarlierRun, job: Job, hashed: Mapping[str, Any]) -> Step:
    """Go on with a run where its epochs can stand beside new ones, otherwise start it again from the beginning."""
    decision = f"{run.how_it_ended}, retried"
    others, _ = _conditions_changed(run, job.config)
    if run.config_hash is None:
        reason = ""  # it had not come to anything
    elif run.config_hash != config_hashes(hashed)[0]:
        reason = _changed_since(run, hashed)
    elif others:
        reason = f", now with other {few(others)}"
    elif not _leaves_an_epoch_to_time(run, job.config):
        reason = ": the epochs left would all be warm-up"
    elif last_whole(run.path) is None:
        reason = ": no whole checkpoint"
        return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run, goes_on=True)
    else:
        return Step(run.number, job.overrides, f"{decision} from its last checkpoint", run, goes_on=True)
    return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run)


def _leaves_an_epoch_to_time(run: EarlierRun, config: Mapping[str, Any]) -> bool:
    """Whether a run that goes on has an epoch that counts: new processes are cold, and warm up once more."""
    epochs = read_epochs(run.path)
    if epochs.empty or not epochs["is_warmup"].all():
        return True
    left = config["training"]["epochs"] - (int(epochs["epoch"].max()) + 1)
    return left > resolve_warmup_epochs(config["measure"]["warmup_epochs"], config["training"]["epochs"])


def _changed_since(run: EarlierRun, hashed: Mapping[str, Any]) -> str:
    """How the configuration that the same overrides stand for has changed."""
    before = run.record.get("hashed_config") or {}
    differences = [
        f"{key} {before.get(key)} then, {hashed.get(key)} now"
        for key in dict.fromkeys([*before, *hashed])
        if before.get(key) != hashed.get(key)
    ]
    return f": run {run.number} of the same overrides had {few(differences)}" if before else ""


@cache
def _here() -> dict[str, Any]:
    return environment(cpu_name(), usable_cores())


@cache
def _commit() -> str | None:
    commit: str | None = git_state(Path(__file__).parent)["commit"]
    return commit


def _conditions_changed(run: EarlierRun, config: Mapping[str, Any]) -> tuple[list[str], str]:
    """What else than the configuration is not as it was for a run; and its commit, where that is another one."""
    if not run.record.get("environment"):
        return [], ""
    then, now = run.record["environment"], _here()
    commit_then = (run.record["git"] or {}).get("commit")
    commit_now = _commit()
    commits = ""
    if commit_then and commit_now and commit_then != commit_now:
        commits = f"commit ({commit_then[:7]} then, {commit_now[:7]} now)"
    others = []
    if then["code_hash"] != code_hash(config):
        others.append(f"code ({commits or 'uncommitted changes'})")
    versions = [("torch", then["packages"].get("torch"), now["packages"]["torch"])]
    versions += [(key, then.get(key), now[key]) for key in ("python", "cpu")]
    versions += [("number of cores", then.get("num_usable_cores"), now["num_usable_cores"])]
    if "settings" in then:
        names = sorted({*then["settings"], *now["settings"]})
        versions += [(name, then["settings"].get(name), now["settings"].get(name)) for name in names]
    others += [f"{name} ({before} then, {after} now)" for name, before, after in versions if before != after]
    return others, commits
