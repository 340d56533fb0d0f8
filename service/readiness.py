"""Can the service work? The parts that requests need are asked, each within a time that a probe waits."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from care_sweep.errors import CareSweepError, DatabaseError
from care_sweep.storage import Storage
from care_sweep.store import Store

__all__ = ["Readiness"]

_PATIENCE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Readiness:
    """Asks the database and the storage. May be called from any thread, as often as one likes."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._questions = {"database": _Question(store.ping), "storage": _Question(storage.check)}

    def troubles(self) -> Iterator[str]:
        """A sentence for each part that is not ready. What only an operator may know is in the log."""
        asked = {part: question.asked() for part, question in self._questions.items()}
        for part, answer in asked.items():
            try:
                answer.result(_PATIENCE_SECONDS)
            except TimeoutError:
                yield f"the {part} does not answer within {_PATIENCE_SECONDS:g} s"
            except CareSweepError as error:
                _log.error("the %s is not ready: %s", part, error)
                yield str(error) if isinstance(error, DatabaseError) else f"the {part} is out of reach"


class _Question:
    """Asked once at a time, in a thread of its own: what never answers holds one thread, not all."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Future[None] = Future()
        self._answer.set_result(None)

    def asked(self) -> Future[None]:
        """The answer to be; that of the question before, while it is still open."""
        with self._lock:
            if self._answer.done():
                self._answer = Future()
                threading.Thread(target=self._put, args=(self._answer,), daemon=True).start()
            return self._answer

    def _put(self, answer: Future[None]) -> None:
        try:
            self._ask()
        except Exception as error:  # noqa: BLE001  (it is raised where the answer is read)
            answer.set_exception(error)
        else:
            answer.set_result(None)
