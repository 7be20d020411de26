"""Errors of ranks in plain values: which follow from others, and what they are as exceptions."""

from collections.abc import Mapping
from typing import Any

from laptime.errors import Interrupted, RankFailed, TrainingFailed, UserError


def is_lost_contact(error: Mapping[str, Any]) -> bool:
    """Whether a rank complains that another no longer answers: the other's end is the cause."""
    return "traceback" in error and ("gloo" in error["message"] or error["type"].startswith("Dist"))


def is_consequence(error: Mapping[str, Any]) -> bool:
    """Whether a rank's end may follow from what happened to another one."""
    return error["type"] == "Interrupted" or is_lost_contact(error)


def as_exception(error: Mapping[str, Any], rank: int) -> BaseException:
    """A rank's error in plain values (`describe`) as the run's."""
    if error["type"] == "UserError":
        return UserError(error["message"])
    if error["type"] == "TrainingFailed":
        return TrainingFailed(error["message"], error["epoch"], error["step"])
    if error["type"] == "Interrupted":
        return Interrupted(error["signum"])
    message = f"rank {rank}: {error['type']}: {error['message']}"
    if error["type"] == "RankDied":
        message = f"rank {rank} {error['message']}"
    return RankFailed(message, {**error, "rank": rank, "message": message})
