"""How a rank failed, as plain values that can be sent to other processes, and which exception the run raises for it."""

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
        message: names the rank and says how it ended.
        error: the same as plain values, with the rank's traceback if it raised.
    """

    def __init__(self, message: str, error: RunError) -> None:
        super().__init__(message)
        self.error = error


class RankFailure(Struct, frozen=True):
    """How a rank failed.

    Attributes:
        cause: why it ended.
        error: for run.json.
        signum: the signal that interrupted it; 0: none.
    """

    cause: Cause
    error: RunError
    signum: int = 0

    @classmethod
    def of(cls, failure: BaseException) -> "RankFailure":
        """The failure of a rank that raised this exception."""
        error = to_run_error(failure)
        if isinstance(failure, UserError | TrainingFailed):
            return cls(Cause.REFUSED, error)
        if isinstance(failure, Interrupted):
            return cls(Cause.INTERRUPTED, error, failure.signum)
        return cls(Cause.LOST_CONTACT if _is_lost_contact(failure) else Cause.RAISED, error)

    @classmethod
    def died(cls, how: str) -> "RankFailure":
        """The failure of a rank whose process something else killed.

        Args:
            how: the end of a sentence about the rank: `was killed by SIGKILL`.
        """
        return cls(Cause.DIED, RunError(type="RankDied", message=how))

    @property
    def is_consequence(self) -> bool:
        """Whether the failure of another rank may have caused this one."""
        return self.cause in (Cause.INTERRUPTED, Cause.LOST_CONTACT)

    def as_exception(self, rank: int) -> BaseException:
        """The exception that the run raises."""
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
    """How a rank ended, as it reports it to the other ranks.

    Attributes:
        failure: None: the rank completed.
    """

    rank: int
    failure: RankFailure | None


def to_run_error(failure: BaseException) -> RunError:
    """An exception as plain values: its type and message, and what else exceptions of this type know."""
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
