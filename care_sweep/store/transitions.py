"""Which moves may a sweep make? One table for users, runners and drivers; what is not in it is a conflict."""

from collections.abc import Mapping
from enum import StrEnum

from care_sweep.errors import Conflict
from care_sweep.spec import SweepState

__all__ = ["HELD_STATES", "MOVES", "Move", "state_after", "states_before"]


class Move(StrEnum):
    """What somebody wants of a sweep."""

    CLAIM = "claim"
    GIVE_WAY = "let others drive"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    CANCEL = "cancel"
    EXTEND = "extend"
    ENQUEUE = "enqueue"
    STOP_TRIAL = "stop a trial of"
    DELETE = "delete"
    SUCCEED = "succeed with"
    FAIL = "fail"
    GIVE_UP = "give up"


_QUEUED, _RUNNING, _PAUSED, _STOPPING = (
    SweepState.QUEUED,
    SweepState.RUNNING,
    SweepState.PAUSED,
    SweepState.STOPPING,
)
_SUCCEEDED, _FAILED, _CANCELLED = SweepState.SUCCEEDED, SweepState.FAILED, SweepState.CANCELLED

MOVES: Mapping[Move, Mapping[SweepState, SweepState]] = {
    # a runner's: for the first time, or after its driver died; a paused one only to let go of it
    Move.CLAIM: {_QUEUED: _RUNNING, _RUNNING: _RUNNING, _PAUSED: _PAUSED, _STOPPING: _STOPPING},
    # a driver's, whose place another sweep waits for
    Move.GIVE_WAY: {_RUNNING: _QUEUED, _PAUSED: _PAUSED, _STOPPING: _STOPPING},
    # a user's; a running sweep gets to its end through STOPPING, where its driver winds it down
    Move.PAUSE: {_QUEUED: _PAUSED, _RUNNING: _PAUSED},
    Move.RESUME: {_PAUSED: _QUEUED},
    Move.STOP: {_QUEUED: _SUCCEEDED, _RUNNING: _STOPPING, _PAUSED: _SUCCEEDED},
    Move.CANCEL: {_QUEUED: _CANCELLED, _RUNNING: _STOPPING, _PAUSED: _CANCELLED, _STOPPING: _STOPPING},
    Move.EXTEND: {
        _QUEUED: _QUEUED,
        _RUNNING: _RUNNING,
        _PAUSED: _PAUSED,
        _SUCCEEDED: _QUEUED,
        _FAILED: _QUEUED,
    },
    Move.ENQUEUE: {_QUEUED: _QUEUED, _RUNNING: _RUNNING, _PAUSED: _PAUSED},
    Move.STOP_TRIAL: {_QUEUED: _QUEUED, _RUNNING: _RUNNING, _PAUSED: _PAUSED, _STOPPING: _STOPPING},
    Move.DELETE: {_SUCCEEDED: _SUCCEEDED, _FAILED: _FAILED, _CANCELLED: _CANCELLED},
    # its holder's; a paused sweep has one while it winds down
    Move.SUCCEED: {_RUNNING: _SUCCEEDED, _PAUSED: _SUCCEEDED, _STOPPING: _SUCCEEDED},
    Move.FAIL: {_RUNNING: _FAILED, _PAUSED: _FAILED, _STOPPING: _FAILED},
    Move.GIVE_UP: {_RUNNING: _CANCELLED, _PAUSED: _CANCELLED, _STOPPING: _CANCELLED},
}

_WHY_NOT: Mapping[tuple[Move, SweepState], str] = {
    (Move.EXTEND, _CANCELLED): "a cancelled sweep stays so; submit a new one",
    (Move.EXTEND, _STOPPING): "wait until it has ended",
    (Move.RESUME, _RUNNING): "it runs already",
    (Move.RESUME, _QUEUED): "it waits for a runner already",
    (Move.PAUSE, _PAUSED): "it is paused already",
    (Move.STOP, _STOPPING): "it is being stopped already",
}


def state_after(move: Move, state: SweepState) -> SweepState:
    """Where a sweep in `state` stands after the move.

    Raises:
        Conflict: the move is not for that state; the message names the states it is for.
    """
    after = MOVES[move].get(state)
    if after is None:
        ended = f"it has already ended as {state}" if state.is_terminal else f"it is {state}"
        known = _WHY_NOT.get((move, state))
        remedy = known or f"only one that is {_in_words(states_before(move))} can be"
        raise Conflict(f"cannot {move} the sweep: {ended}; {remedy}")
    return after


def states_before(move: Move) -> list[SweepState]:
    """The states from which the move is made."""
    return list(MOVES[move])


def _in_words(states: list[SweepState]) -> str:
    *others, last = states
    return f"{', '.join(others)} or {last}" if others else last


HELD_STATES = states_before(Move.SUCCEED)
"""The states in which a sweep has a holder."""
