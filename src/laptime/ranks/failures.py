"""How a rank failed, as plain values that cross processes: whose fault it is, and which exception it is for the run."""

import traceback
from enum import IntEnum

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from laptime.errors import Interrupted, RunFailed, TrainingFailed, UserError
from laptime.record.schema import RunError


class Cause(IntEnum):
    """Why a rank ended. Of several ranks the one with the smallest value is the cause: its end ended the others."""

    REFUSED = 0  # a mistake in what was asked for, or a training that went wrong: every rank says the same
    DIED = 1  # its process was ended from outside
    INTERRUPTED = 2  # a signal, perhaps only because another rank had failed
    RAISED = 3  # whatever else it raised
    STUCK = 4  # it gave no answer
    LOST_CONTACT = 5  # another rank no longer answered


class RankFailed(RunFailed):
    """A rank died, got stuck or raised something.

    Args:
        message: which rank, and what became of it.
        error: the same in plain values, with the rank's traceback where it had one.
    """

    def __init__(self, message: str, error: RunError) -> None:
        super().__init__(message)
        self.error = error


class RankFailure(Struct, frozen=True):
    """How a rank failed.

    Attributes:
        cause: whose fault it is.
        error: as run.json will have it.
        signum: of the signal that interrupted it; 0: none did.
    """

    cause: Cause
    error: RunError
    signum: int = 0

    @classmethod
    def of(cls, failure: BaseException) -> "RankFailure":
        """How an exception ends the rank in which it was raised."""
        error = to_run_error(failure)
        if isinstance(failure, UserError | TrainingFailed):
            return cls(Cause.REFUSED, error)
        if isinstance(failure, Interrupted):
            return cls(Cause.INTERRUPTED, error, failure.signum)
        return cls(Cause.LOST_CONTACT if _is_lost_contact(failure) else Cause.RAISED, error)

    @classmethod
    def died(cls, how: str) -> "RankFailure":
        """The failure of a rank whose process was killed from outside."""
        return cls(Cause.DIED, RunError(type="RankDied", message=how))

    @property
    def is_consequence(self) -> bool:
        """Whether it may follow from what happened to another rank."""
        return self.cause in (Cause.INTERRUPTED, Cause.LOST_CONTACT)

    def as_exception(self, rank: int) -> BaseException:
        """What a rank's failure is for the run."""
        if self.cause is Cause.INTERRUPTED:
            return Interrupted(self.signum)
        error = self.error
        if error.type == UserError.__name__:
            return UserError(error.message)
        if error.type == TrainingFailed.__name__:
            return TrainingFailed(error.message, _known(error.epoch), _known(error.step))
        message = f"rank {rank}: {error.type}: {error.message}"
        if self.cause is Cause.DIED:
            message = f"rank {rank} {error.message}"
        return RankFailed(message, replace(error, rank=rank, message=message))


def _known(value: int | UnsetType | None) -> int | None:
    return None if value is UNSET else value


class Report(Struct, frozen=True):
    """What a rank tells the others of its end.

    Attributes:
        rank: which one.
        failure: None: it has completed.
    """

    rank: int
    failure: RankFailure | None


def to_run_error(failure: BaseException) -> RunError:
    """An exception in plain values: type and message, and what its kind knows besides."""
    error = RunError(type=type(failure).__name__, message=str(failure))
    if isinstance(failure, TrainingFailed):
        return replace(error, epoch=failure.epoch, step=failure.step)
    if isinstance(failure, Interrupted):
        return replace(error, signum=failure.signum)
    if isinstance(failure, UserError):
        return error
    return replace(error, traceback="".join(traceback.format_exception(failure)))


def _is_lost_contact(failure: BaseException) -> bool:
    """Whether a rank complains that another no longer answers. gloo raises a plain RuntimeError, with the place in its
    source: `[gloo/transport/tcp/pair.cc:538] Connection closed by peer`."""
    import torch.distributed as dist

    return isinstance(failure, dist.DistError) or (isinstance(failure, RuntimeError) and "gloo" in str(failure))
