"""A rank's failure as plain values: its cause, and the exception that the run raises for it."""

import msgspec
import pytest
import torch.distributed as dist

from laptime.errors import Interrupted, TrainingFailed, UserError
from laptime.ranks.failures import Cause, RankFailed, RankFailure, Report, to_run_error

pytestmark = pytest.mark.unit

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242")


@pytest.mark.parametrize(
    ("error", "cause", "is_consequence"),
    [
        (UserError("model=x: no"), Cause.REFUSED, False),
        (TrainingFailed("the loss became inf", 0, 3), Cause.REFUSED, False),
        (Interrupted(15), Cause.INTERRUPTED, True),
        (ValueError("broken"), Cause.RAISED, False),
        (ValueError("an exception of the user that mentions gloo"), Cause.RAISED, False),
        (GLOO, Cause.LOST_CONTACT, True),
        (dist.DistBackendError("NCCL error: remote process exited"), Cause.LOST_CONTACT, True),
        (dist.DistStoreError("wait timeout"), Cause.LOST_CONTACT, True),
    ],
)
def test_the_cause_follows_from_the_exception(error, cause, is_consequence):
    failure = RankFailure.of(error)
    assert (failure.cause, failure.is_consequence) == (cause, is_consequence)


@pytest.mark.parametrize("error", [UserError("a"), TrainingFailed("b", 0, 0), TrainingFailed("c"), Interrupted(2)])
def test_exceptions_that_the_command_handles_keep_their_type(error):
    sent = msgspec.json.encode(Report(1, RankFailure.of(error)))
    received = msgspec.json.decode(sent, type=Report)
    raised = received.failure.as_exception(received.rank)
    assert type(raised) is type(error) and str(raised) == str(error) and vars(raised) == vars(error)


def test_other_exceptions_name_the_rank_and_keep_their_traceback():
    try:
        raise ValueError("broken")
    except ValueError as error:
        raised = RankFailure.of(error).as_exception(3)
    assert isinstance(raised, RankFailed) and str(raised) == "rank 3: ValueError: broken"
    assert (raised.error.type, raised.error.rank) == ("ValueError", 3) and "raise ValueError" in raised.error.traceback
    died = RankFailure.died("was killed by SIGKILL").as_exception(1)
    assert str(died) == "rank 1 was killed by SIGKILL" and died.error.type == "RankDied"


def test_the_smallest_value_is_the_root_cause():
    """A user's mistake comes before a death, and a death before its consequences for other ranks."""
    order = [Cause.REFUSED, Cause.DIED, Cause.INTERRUPTED, Cause.RAISED, Cause.STUCK, Cause.LOST_CONTACT]
    assert sorted(Cause) == order


def test_only_the_keys_of_the_type_of_error_are_written():
    assert msgspec.to_builtins(to_run_error(UserError("a"))) == {"type": "UserError", "message": "a"}
    plain = msgspec.to_builtins(to_run_error(TrainingFailed("b")))
    assert plain == {"type": "TrainingFailed", "message": "b", "epoch": None, "step": None}
