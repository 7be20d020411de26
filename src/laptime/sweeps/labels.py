"""What tells the runs of a sweep from each other."""

from laptime.config.overrides import key_of, parse
from laptime.config.security import PER_INVOCATION_KEYS
from laptime.record.masking import mask_command
from laptime.runner.job import folder_name
from laptime.text import short_name

# A resumed sweep may be given other values of these. They do not tell its runs apart.
NOT_SWEPT_KEYS = ("measure.target_interval", "measure.max_repeats", "sweep.on_failure")


def swept(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """Those overrides of a job that not every job of the sweep has, without secrets.

    Args:
        overrides: of the job.
        jobs: overrides of every job of the sweep.
    """
    same_everywhere = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    differ = [each for each in overrides if each not in same_everywhere]
    return mask_command([each for each in differ if key_of(each) not in (*NOT_SWEPT_KEYS, *PER_INVOCATION_KEYS)])


def sweep_label(overrides: list[str], jobs: list[list[str]]) -> str:
    """What tells a job of a sweep from the others, short enough for a folder's name, without secrets: `ws=2 seed=1`.

    Args:
        overrides: of the job.
        jobs: overrides of every job of the sweep.
    """
    parts = []
    for each in map(parse, swept(overrides, jobs)):
        key = f"~{each.full_key}" if each.is_deletion else each.full_key
        parts.append(f"{short_name(key)}={each.value_text or ''}")
    return folder_name(" ".join(parts))


def drop_shared_keys(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """Those overrides of a job whose keys not every job sets alike. A sweeper that chooses writes what all its jobs
    share in words of its own: False for false."""
    shared = {parse(each).full_key for each in set.intersection(*map(set, jobs))}
    return [each for each in overrides if parse(each).full_key not in shared]
