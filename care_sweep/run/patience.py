"""What does a process do while its database is away or full? It says so once, waits, and tries again."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from care_sweep.errors import DatabaseUnavailable
from care_sweep.store.trouble import in_words

__all__ = ["Complaints", "outlast"]

_PAUSE_SECONDS = 1.0
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class Complaints:
    """Logs a trouble when it begins and when it is over, not each time it is met."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._current: str | None = None

    def note(self, error: Exception | None) -> None:
        found = None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
        if found == self._current:
            return
        self._current = found
        if error is None:
            _LOG.info("%s: in order again", self._what)
        elif isinstance(error, DatabaseUnavailable):
            _LOG.error("%s: %s; trying again", self._what, in_words(error))
        else:
            _LOG.error("%s; trying again", self._what, exc_info=error)


def outlast(action: Callable[[], _T]) -> _T:
    """What the action answers, once the database lets it; all else that goes wrong is raised."""
    complaints = Complaints("the database cannot be used")
    while True:
        try:
            answer = action()
        except DatabaseUnavailable as error:
            complaints.note(error)
            time.sleep(_PAUSE_SECONDS)
        else:
            complaints.note(None)
            return answer
