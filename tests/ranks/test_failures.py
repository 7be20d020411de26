"""How a rank's failure travels as plain values: whose fault it is, and which exception it is for the run."""

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
        (ValueError("a class of the user's own speaks of gloo"), Cause.RAISED, False),
        (GLOO, Cause.LOST_CONTACT, True),
        (dist.DistBackendError("NCCL error: remote process exited"), Cause.LOST_CONTACT, True),
        (dist.DistStoreError("wait timeout"), Cause.LOST_CONTACT, True),
    ],
)
def test_the_cause_follows_from_the_exception(error, cause, is_consequence):
    failure = RankFailure.of(error)
    assert (failure.cause, failure.is_consequence) == (cause, is_consequence)


@pytest.mark.parametrize("error", [UserError("a"), TrainingFailed("b", 0, 0), TrainingFailed("c"), Interrupted(2)])
def test_what_the_command_line_knows_comes_back_as_what_it_was(error):
    sent = msgspec.json.encode(Report(1, RankFailure.of(error)))
    back = msgspec.json.decode(sent, type=Report)
    again = back.failure.as_exception(back.rank)
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_anything_else_names_the_rank_and_keeps_its_traceback():
    try:
        raise ValueError("broken")
    except ValueError as error:
        found = RankFailure.of(error).as_exception(3)
    assert isinstance(found, RankFailed) and str(found) == "rank 3: ValueError: broken"
    assert (found.error.type, found.error.rank) == ("ValueError", 3) and "raise ValueError" in found.error.traceback
    died = RankFailure.died("was killed by SIGKILL").as_exception(1)
    assert str(died) == "rank 1 was killed by SIGKILL" and died.error.type == "RankDied"


def test_what_ended_first_is_the_cause():
    """The smallest value wins: a mistake before a death, a death before what it did to the others."""
    order = [Cause.REFUSED, Cause.DIED, Cause.INTERRUPTED, Cause.RAISED, Cause.STUCK, Cause.LOST_CONTACT]
    assert sorted(Cause) == order


def test_no_key_is_written_that_a_kind_of_error_does_not_have():
    assert msgspec.to_builtins(to_run_error(UserError("a"))) == {"type": "UserError", "message": "a"}
    plain = msgspec.to_builtins(to_run_error(TrainingFailed("b")))
    assert plain == {"type": "TrainingFailed", "message": "b", "epoch": None, "step": None}
