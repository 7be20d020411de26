"""Describes how a rank failed, in plain values that can be sent to other processes, and raises it as an exception."""

import traceback
from enum import IntEnum

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from laptime.errors import Interrupted, RunFailed, TrainingFailed, UserError
from laptime.record.schema import RunError


class Cause(IntEnum):
    """Why a rank ended. When several ranks end, the smallest value is the root cause."""

    REFUSED = 0  # a user's mistake, or a training that diverged: every rank raises the same
    DIED = 1  # something else killed its process
    INTERRUPTED = 2  # a signal stopped it, perhaps only because another rank had failed
    RAISED = 3  # it raised any other exception
    STUCK = 4  # it did not answer within the timeout
    LOST_CONTACT = 5  # its connection to another rank broke


class RankFailed(RunFailed):
    """A rank died, got stuck or raised something.

    Args:
        message: a sentence that names the rank and says how it ended.
        error: the failure as plain values, with the rank's traceback if it raised.
    """

    def __init__(self, message: str, error: RunError) -> None:
        super().__init__(message)
        self.error = error


class RankFailure(Struct, frozen=True):
    """How a rank failed.

    Attributes:
        cause: the kind of failure.
        error: the failure as plain values for run.json.
        signum: the signal that interrupted the rank; 0: none.
    """

    cause: Cause
    error: RunError
    signum: int = 0

    @classmethod
    def of(cls, failure: BaseException) -> "RankFailure":
        """Return the failure of a rank that raised this exception."""
        error = to_run_error(failure)
        if isinstance(failure, UserError | TrainingFailed):
            return cls(Cause.REFUSED, error)
        if isinstance(failure, Interrupted):
            return cls(Cause.INTERRUPTED, error, failure.signum)
        return cls(Cause.LOST_CONTACT if _is_lost_contact(failure) else Cause.RAISED, error)

    @classmethod
    def died(cls, how: str) -> "RankFailure":
        """Return the failure of a rank whose process was killed from outside.

        Args:
            how: the end of a sentence about the rank: `was killed by SIGKILL`.
        """
        return cls(Cause.DIED, RunError(type="RankDied", message=how))

    @property
    def is_consequence(self) -> bool:
        """Whether the failure of another rank may have caused this one."""
        return self.cause in (Cause.INTERRUPTED, Cause.LOST_CONTACT)

    def as_exception(self, rank: int) -> BaseException:
        """Return the exception that the run raises for this failure."""
        if self.cause is Cause.INTERRUPTED:
            return Interrupted(self.signum)
        error = self.error
        if error.type == UserError.__name__:
            return UserError(error.message)
        if error.type == TrainingFailed.__name__:
            return TrainingFailed(error.message, _or_none(error.epoch), _or_none(error.step))
        message = f"rank {rank}: {error.type}: {error.message}"
        if self.cause is Cause.DIED:
            message = f"rank {rank} {error.message}"
        return RankFailed(message, replace(error, rank=rank, message=message))


def _or_none(value: int | UnsetType | None) -> int | None:
    return None if value is UNSET else value


class Report(Struct, frozen=True):
    """The report of a rank to the other ranks about its end.

    Attributes:
        failure: how the rank failed; None: it completed.
    """

    rank: int
    failure: RankFailure | None


def to_run_error(failure: BaseException) -> RunError:
    """Convert an exception to plain values: its type, its message, and further values that its type has."""
    error = RunError(type=type(failure).__name__, message=str(failure))
    if isinstance(failure, TrainingFailed):
        return replace(error, epoch=failure.epoch, step=failure.step)
    if isinstance(failure, Interrupted):
        return replace(error, signum=failure.signum)
    if isinstance(failure, UserError):
        return error
    return replace(error, traceback="".join(traceback.format_exception(failure)))


def _is_lost_contact(failure: BaseException) -> bool:
    """Whether an exception says that the connection to another rank broke.

    gloo (torch 2.14) raises a plain RuntimeError for that, with the position in its source. Not reported upstream:
    `[gloo/transport/tcp/pair.cc:538] Connection closed by peer`.
    """
    import torch.distributed as dist

    return isinstance(failure, dist.DistError) or (isinstance(failure, RuntimeError) and "gloo" in str(failure))
