"""How does a program use the service? The HTTP API as typed methods that survive dropped connections."""

import codecs
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

from care_sweep.answers import (
    Best,
    Cluster,
    Event,
    Measurement,
    Resolved,
    Sweep,
    SweepSummary,
    Trial,
    TrialDetail,
)
from care_sweep.connection import PATIENCE_SECONDS, Connection, path_of
from care_sweep.credentials import own_token
from care_sweep.errors import ServiceError
from care_sweep.spec import Scalar, SweepState

__all__ = ["Client"]

_WAIT_SECONDS = 0.5
_EXPORT_SECONDS = 600.0  # the file is written before its first byte is sent


class Client:
    """The service's API as methods. Answers are typed dicts: the JSON as it came (`care_sweep.answers`).

    Reading, and submitting, is tried again when the connection fails or the service asks for patience
    (Retry-After, for up to a minute), and everything where too many requests came (429).
    Every method raises `ServiceError`: with the HTTP status and the problems of a refusal, or with status
    None where no answer came.

    Args:
        url: where the service listens, such as http://127.0.0.1:8484.
        timeout: seconds to wait for a connection, or for the next bytes.
        token: who asks; by default the user's own (`care_sweep.credentials`), and none where it is empty.
    """

    def __init__(self, url: str, *, timeout: float = 30.0, token: str | None = None) -> None:
        self._connection = Connection(url, timeout, own_token() if token is None else token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # --- sweeps ---

    @overload
    def submit(
        self,
        document: Mapping[str, Any] | str | bytes,
        *,
        idempotency_key: str | None = None,
        validate_only: Literal[False] = False,
    ) -> Sweep: ...

    @overload
    def submit(
        self,
        document: Mapping[str, Any] | str | bytes,
        *,
        idempotency_key: str | None = None,
        validate_only: Literal[True],
    ) -> Resolved: ...

    def submit(
        self,
        document: Mapping[str, Any] | str | bytes,
        *,
        idempotency_key: str | None = None,
        validate_only: bool = False,
    ) -> Sweep | Resolved:
        """Submit a sweep: a mapping, or the text of a JSON or YAML document.

        Args:
            document: the sweep; its `space` may be the name of a search space.
            idempotency_key: names this submission for 24 hours; by default a new one, which makes the
                tries of this one call safe. Give your own to have several calls submit one sweep.
            validate_only: answer what would be accepted and write nothing.
        """
        text = json.dumps(document) if isinstance(document, Mapping) else document
        response = self._connection.request(
            "POST",
            path_of("sweeps"),
            is_safe=True,
            content=text.encode() if isinstance(text, str) else text,
            headers={
                "Content-Type": "application/yaml",  # of which JSON is a part
                "Idempotency-Key": idempotency_key or secrets.token_hex(16),
            },
            params={"validate_only": "true"} if validate_only else {},
        )
        return cast("Sweep | Resolved", self._connection.json_of(response))

    def sweeps(self, *, states: Sequence[str] = (), page_size: int = 100) -> Iterator[SweepSummary]:
        """Sweeps, newest first; the next page is asked for when it is needed."""
        parameters = {"state": list(states), "page_size": page_size}
        return self._connection.pages(path_of("sweeps"), "sweeps", parameters)

    def sweep(self, sweep_id: str) -> Sweep:
        """One sweep, with the whole document it runs."""
        return cast("Sweep", self._connection.get(path_of("sweeps", sweep_id)))

    # --- control ---

    def pause(self, sweep_id: str) -> Sweep:
        """Start nothing more; running trials stop after their epoch and give back what they hold."""
        return self._post(path_of("sweeps", sweep_id) + ":pause")

    def resume(self, sweep_id: str) -> Sweep:
        """Take a paused sweep up again, from the epochs its trials stood at."""
        return self._post(path_of("sweeps", sweep_id) + ":resume")

    def stop(self, sweep_id: str) -> Sweep:
        """Begin no new trial and succeed once those that have begun have ended."""
        return self._post(path_of("sweeps", sweep_id) + ":stop")

    def cancel(self, sweep_id: str) -> Sweep:
        """Ask for an end; a running sweep is STOPPING until its runner has stopped it."""
        return self._post(path_of("sweeps", sweep_id) + ":cancel")

    def change(self, sweep_id: str, changes: Mapping[str, Any], *, revision: int | None = None) -> Sweep:
        """Change `num_trials`, `max_concurrent_trials`, `budget`, `priority`; one that has ended goes on.

        Args:
            changes: what is left out stays as it is.
            revision: the sweep's when you read it; somebody else's change since then is a refusal (412).
        """
        sent = _as_json(changes)
        if revision is not None:
            sent["headers"]["If-Match"] = f'"{revision}"'
        response = self._connection.request("PATCH", path_of("sweeps", sweep_id), is_safe=False, **sent)
        return cast("Sweep", self._connection.json_of(response))

    def enqueue(self, sweep_id: str, parameters: Mapping[str, Scalar]) -> Sweep:
        """Have a configuration tried before what the search suggests; the answer's `enqueued` has it."""
        sent = _as_json({"parameters": dict(parameters)})
        sent["headers"]["Idempotency-Key"] = secrets.token_hex(16)
        path = path_of("sweeps", sweep_id, "trials")
        response = self._connection.request("POST", path, is_safe=True, **sent)
        return cast("Sweep", self._connection.json_of(response))

    def stop_trial(self, sweep_id: str, number: int) -> Sweep:
        """Cancel one open trial; a running one stops after its epoch."""
        return self._post(path_of("sweeps", sweep_id, "trials", number) + ":stop")

    def delete(self, sweep_id: str) -> None:
        """Delete an ended sweep with all its artifacts."""
        self._connection.request("DELETE", path_of("sweeps", sweep_id), is_safe=False)

    def _post(self, path: str) -> Sweep:
        response = self._connection.request("POST", path, is_safe=False)
        return cast("Sweep", self._connection.json_of(response))

    # --- what it has found ---

    def best(self, sweep_id: str, k: int = 5) -> Best:
        """The k best configurations beside the baselines, and what the evidence is worth."""
        return cast("Best", self._connection.get(path_of("sweeps", sweep_id, "best"), k=k))

    def events(self, sweep_id: str, *, after: int = 0) -> Iterator[Event]:
        """Every event after the sequence `after`, once, in order, as it happens, until the sweep ends."""
        return self._connection.stream(path_of("sweeps", sweep_id, "events"), after)

    def wait(self, sweep_id: str, *, timeout: float | None = None) -> Sweep:
        """Block until the sweep has ended. The service may be away meanwhile, for up to a minute at a time.

        Raises:
            TimeoutError: it had not after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not SweepState((sweep := self._sweep_in_the_end(sweep_id))["state"]).is_terminal:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"sweep {sweep_id} is still {sweep['state']} after {timeout} s")
            time.sleep(_WAIT_SECONDS)
        return sweep

    def _sweep_in_the_end(self, sweep_id: str) -> Sweep:
        """One sweep, from a service that may be away for a while."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.sweep(sweep_id)
            except ServiceError as error:
                if error.status not in (None, 429, 503) or time.monotonic() >= give_up_at:
                    raise
            time.sleep(_WAIT_SECONDS)

    def export(
        self,
        sweep_id: str,
        path: str | Path,
        *,
        file_format: Literal["csv", "parquet", "optuna"] = "csv",
        rows: Literal["trials", "measurements"] | None = None,
    ) -> Path:
        """Write a sweep into one file; returns where it lies. `path` and errors are as of `download`.

        Args:
            file_format: `optuna` is for `optuna.load_study(study_name=sweep_id, storage="sqlite:///FILE")`.
            rows: of the others: one a trial (the default) with all its configuration, or one a measurement.
        """
        where = path_of("sweeps", sweep_id, "export") + f"?format={file_format}"
        where += "" if rows is None else f"&rows={rows}"
        return self._connection.download(where, Path(path), prepared_seconds=_EXPORT_SECONDS)

    # --- trials ---

    def trials(self, sweep_id: str, *, states: Sequence[str] = (), page_size: int = 500) -> Iterator[Trial]:
        """Trials by number; the next page is asked for when it is needed."""
        parameters = {"state": list(states), "page_size": page_size}
        return self._connection.pages(path_of("sweeps", sweep_id, "trials"), "trials", parameters)

    def trial(self, sweep_id: str, number: int) -> TrialDetail:
        """One trial, with each of its attempts."""
        return cast("TrialDetail", self._connection.get(path_of("sweeps", sweep_id, "trials", number)))

    def measurements(self, sweep_id: str, number: int) -> list[Measurement]:
        """What each epoch of a trial reported."""
        answer = self._connection.get(path_of("sweeps", sweep_id, "trials", number, "measurements"))
        return cast("list[Measurement]", answer["measurements"])

    def logs(self, sweep_id: str, number: int, *, attempt: int | None = None) -> str:
        """What an attempt (by default the last) has logged so far."""
        path = path_of("sweeps", sweep_id, "trials", number, "logs")
        parameters = {} if attempt is None else {"attempt": attempt}
        return self._connection.request("GET", path, is_safe=True, params=parameters).text

    def follow_logs(self, sweep_id: str, number: int, *, attempt: int | None = None) -> Iterator[str]:
        """What an attempt (by default the last) has logged, and then what it logs, until it has ended."""
        attempt = attempt or self.trial(sweep_id, number)["attempt"]
        path = path_of("sweeps", sweep_id, "trials", number, "logs")
        return codecs.iterdecode(self._connection.tail(path, attempt=attempt), "utf-8", errors="replace")

    def download(self, sweep_id: str, path: str | Path, *, number: int | None = None) -> Path:
        """Download the checkpoint of the best trial, or of trial `number`; returns where it lies.

        `path` is a file, or a folder, which then takes the service's name for it. Nothing has the file's
        name before its SHA-256 is right.

        Raises:
            CheckpointError: what arrived is not what the service stores.
            OSError: nothing can be written at `path`.
        """
        which = ("checkpoints", "best") if number is None else ("trials", number, "checkpoint")
        return self._connection.download(path_of("sweeps", sweep_id, *which), Path(path))

    # --- what a sweep can draw on ---

    def spaces(self) -> list[dict[str, Any]]:
        """The search spaces that a sweep can name."""
        return cast("list[dict[str, Any]]", self._connection.get(path_of("search-spaces"))["search_spaces"])

    def space(self, name: str) -> dict[str, Any]:
        """One search space."""
        return cast("dict[str, Any]", self._connection.get(path_of("search-spaces", name)))

    def cluster(self) -> Cluster:
        """The Ray cluster as a runner last saw it, and where its dashboard is."""
        return cast("Cluster", self._connection.get(path_of("cluster")))


def _as_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body and headers; numbers that JSON has not, such as NaN, are for the service to refuse."""
    return {"content": json.dumps(dict(document)), "headers": {"Content-Type": "application/json"}}
