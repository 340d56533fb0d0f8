"""How does a request get through? One HTTP connection that tries again, takes up again and tells refusals."""

import base64
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx2

from care_sweep.errors import CheckpointError, Problem, ServiceError

__all__ = ["PATIENCE_SECONDS", "Connection", "have_one_origin", "path_of", "without_password"]

_T = TypeVar("_T")

_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")  # what a header takes
_PORTS = {"http": 80, "https": 443}
_BACKOFF_SECONDS = (0.2, 0.5, 1.0)
_STREAM_SILENCE_SECONDS = 45.0  # the service sends a sign of life every 15 s
PATIENCE_SECONDS = 60.0
"""How long a service or its database may be away before a follower gives up."""


class Connection:
    """Requests to one service. All raise `ServiceError`: a refusal has a status, no answer has none."""

    def __init__(self, url: str, timeout: float, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        if token and not _TOKEN.fullmatch(token):
            raise ServiceError("the token is none: give what `care-sweep token create` printed, in one line")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            address = httpx2.URL(self.url)
            if address.scheme not in ("http", "https") or not address.host:
                raise ValueError("it does not begin with http://HOST or https://HOST")
            is_local = address.host in ("127.0.0.1", "::1", "localhost")  # not behind a proxy, then
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=not is_local
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ServiceError(f"{without_password(url)!r} is not the URL of a service: {error}") from error

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, is_safe: bool, **options: Any) -> httpx2.Response:
        """One answer of 2xx. `is_safe`: it does no harm if the request reaches the service twice.

        A refusal that may pass is waited for as long as it says, but for no more than a minute in all.
        """
        patience = _Patience()
        while True:
            try:
                response = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if not ((is_safe or never_sent) and patience.has_waited_for_an_answer()):
                    raise self._unreachable(error) from error
                continue
            if not (_may_pass(response, is_safe=is_safe) and patience.has_waited(response)):
                return _accepted(response)

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at a path."""
        return self.json_of(self.request("GET", path, is_safe=True, params=parameters))

    def json_of(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            message = f"{without_password(self.url)} did not answer JSON; is it a care-sweep service?"
            raise ServiceError(message, status=response.status_code) from error

    def pages(self, path: str, key: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """The items of all pages; each page is asked for when it is needed."""
        token: str | None = None
        while True:
            page = self.get(path, **parameters, **({"page_token": token} if token else {}))
            yield from page[key]
            token = page["next_page_token"]
            if token is None:
                return

    def stream(self, path: str, after: int) -> Iterator[Any]:
        """The data of each server-sent event after the id `after`, once and in order, until the stream ends.

        A dropped connection is taken up again where it broke, for as long as the service is not away, or
        asks for patience, for more than a minute.
        """

        def rest() -> Iterator[Any]:
            nonlocal after
            for event in self._stream_once(path, after):
                after = int(event.id)
                yield event.json()

        return self._over_breaks(rest)

    def tail(self, path: str, **parameters: Any) -> Iterator[bytes]:
        """The bytes of what grows at a path, once and in order, until the service says that this was all.

        A dropped connection is taken up again as by `stream`, and so is one on which nothing comes for long.
        """
        after = 0

        def rest() -> Iterator[bytes]:
            nonlocal after
            for chunk in self._tail_once(path, {**parameters, "follow": True, "after": after}):
                after += len(chunk)
                yield chunk

        return filter(None, self._over_breaks(rest))

    def _over_breaks(self, rest: Callable[[], Iterator[_T]]) -> Iterator[_T]:
        """What `rest` yields, called again for what is left where the connection broke."""
        lost_at: float | None = None
        while True:
            try:
                for item in rest():
                    lost_at = None
                    yield item
            except (httpx2.TransportError, _InterruptedError) as error:
                lost_at = lost_at or time.monotonic()
                patience = lost_at + PATIENCE_SECONDS - time.monotonic()
                if patience < 0:
                    raise self._unreachable(error) from error
                asked = error.pause_seconds if isinstance(error, _InterruptedError) else None
                time.sleep(min(asked or _BACKOFF_SECONDS[-1], patience))
            else:
                return

    def _stream_once(self, path: str, after: int) -> Iterator[httpx2.ServerSentEvent]:
        headers = {"Last-Event-ID": str(after)}
        with self._http.sse(
            path, headers=headers, timeout=self._silent_for(_STREAM_SILENCE_SECONDS)
        ) as source:
            _begun(source.response)
            for event in source:
                if event.data:
                    yield event
                elif event.retry is not None:  # how the service says that it stops but the stream goes on
                    raise _InterruptedError("the service has stopped")

    def _tail_once(self, path: str, parameters: Mapping[str, Any]) -> Iterator[bytes]:
        with self._http.stream(
            "GET", path, params=parameters, timeout=self._silent_for(_STREAM_SILENCE_SECONDS)
        ) as response:
            if _begun(response).status_code == 204:
                return
            yield b""  # a sign of life
            yield from response.iter_bytes()
        raise _InterruptedError("there may be more")

    def _silent_for(self, seconds: float) -> httpx2.Timeout:
        """Wait so long for the next bytes, and for a connection as ever."""
        timeout = httpx2.Timeout(self._http.timeout)
        timeout.read = seconds
        return timeout

    def download(
        self, path: str, target: Path, *, needs_digest: bool = True, prepared_seconds: float | None = None
    ) -> Path:
        """Write the file at a path to `target`, or into it if it is a folder; returns where it lies.

        The bytes go to a temporary name in the same folder, which becomes the file's name once the SHA-256
        that the service told is theirs. A server that is not ours need not tell one: `needs_digest` False.
        Where the service takes long to prepare the file, `prepared_seconds` is how long it may.

        Raises:
            CheckpointError: it is not.
            OSError: nothing can be written there; its `filename` is `target`.
        """
        folder = target if target.is_dir() else target.parent
        partial = folder / f".{secrets.token_hex(6)}.part"
        try:
            with partial.open("wb") as file:
                response = self._fetch(path, file, prepared_seconds)
                os.fsync(file.fileno())
            if needs_digest or "repr-digest" in response.headers:
                _verify(partial, response)
            final = target / _file_name(response) if target.is_dir() else target
            partial.replace(final)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return final

    def _fetch(self, path: str, file: IO[bytes], prepared_seconds: float | None) -> httpx2.Response:
        """Write all bytes, over as many connections as it takes; returns the head of the last answer."""
        etag = ""
        timeout = self._http.timeout if prepared_seconds is None else self._silent_for(prepared_seconds)
        patience = _Patience()
        while True:
            headers = {"Range": f"bytes={file.tell()}-", "If-Range": etag} if etag and file.tell() else {}
            try:
                with self._http.stream(
                    "GET", path, headers=headers, follow_redirects=True, timeout=timeout
                ) as response:
                    if not response.is_success:
                        response.read()
                    else:
                        patience.is_accepted()
                        if response.status_code != 206:
                            file.seek(0)
                            file.truncate()
                        etag = response.headers.get("etag", "")
                        for chunk in response.iter_bytes():  # of no set size, which would hold bytes back
                            file.write(chunk)
                        file.flush()
                        return response
                if not (_may_pass(response, is_safe=True) and patience.has_waited(response)):
                    return _accepted(response)
            except httpx2.TransportError as error:
                if not patience.has_waited_for_an_answer():
                    raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServiceError:
        why = str(error) or type(error).__name__
        url = without_password(self.url)
        return ServiceError(f"no answer from {url} ({why}); `care-sweep serve` starts a service")


class _Patience:
    """How long one request is tried again: a minute from a refusal on, three times where no answer comes."""

    def __init__(self) -> None:
        self._give_up_at: float | None = None
        self._unanswered = iter(_BACKOFF_SECONDS)
        self._refused = chain(_BACKOFF_SECONDS, repeat(_BACKOFF_SECONDS[-1]))

    def is_accepted(self) -> None:
        """The minute begins anew with the next refusal: what the transfer takes is none of it."""
        self._give_up_at = None

    def has_waited(self, response: httpx2.Response) -> bool:
        """Sleep for as long as a refusal asks, else for a moment; False, at once, if the minute is over."""
        now = time.monotonic()
        self._give_up_at = self._give_up_at or now + PATIENCE_SECONDS
        if now >= self._give_up_at:
            return False
        time.sleep(min(_asked_pause(response) or next(self._refused), self._give_up_at - now))
        return True

    def has_waited_for_an_answer(self) -> bool:
        """Sleep for a moment; False, at once, if none came three times."""
        pause = next(self._unanswered, None)
        if pause is not None:
            time.sleep(pause)
        return pause is not None


class _InterruptedError(Exception):
    """The stream has more to tell, on another connection, and where it says so in a while."""

    def __init__(self, why: str, pause_seconds: float | None = None) -> None:
        self.pause_seconds = pause_seconds
        super().__init__(why)


def have_one_origin(url: str, other: str) -> bool:
    """Whether scheme, host and port of two URLs are the same, as this connection would read them."""
    try:
        one, two = httpx2.URL(url), httpx2.URL(other)
    except httpx2.InvalidURL:
        return False
    ports = [address.port or _PORTS.get(address.scheme) for address in (one, two)]
    return (one.scheme, one.host) == (two.scheme, two.host) and ports[0] == ports[1]


def without_password(url: str) -> str:
    """A URL as it may be printed, with three stars for who asks and the password, which may be one token."""
    return re.sub(r"//[^/?#]*@", "//***@", url)


def path_of(*parts: str | int) -> str:
    """The API's path of these parts, each quoted."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


def _accepted(response: httpx2.Response) -> httpx2.Response:
    """The response if it is of 2xx; else the problem that it tells is raised."""
    if response.is_success:
        return response
    response.read()
    try:
        document = response.json()
        places = document.get("problems", [])
        problems = [Problem(place["pointer"], place["detail"], place.get("value")) for place in places]
        message = document["title"] if problems else document["detail"]
    except (ValueError, TypeError, KeyError, AttributeError):
        message, problems = f"the service answered {response.status_code} {response.reason_phrase}", []
    raise ServiceError(message, status=response.status_code, problems=problems)


def _may_pass(response: httpx2.Response, *, is_safe: bool) -> bool:
    """Whether the same request may be accepted in a while. After 429 nothing was done, whatever it asked."""
    if response.status_code == 429:
        return True
    asks_for_patience = response.status_code == 503 or "retry-after" in response.headers
    return is_safe and asks_for_patience and not response.is_success


def _asked_pause(response: httpx2.Response) -> float | None:
    """Seconds that a refusal asks to wait. A date, which Retry-After may be too, depends on two clocks."""
    told = response.headers.get("retry-after", "")
    return float(told) if re.fullmatch(r"[0-9]{1,9}", told) else None


def _begun(response: httpx2.Response) -> httpx2.Response:
    """The response of a stream; a service that asks for patience is tried again."""
    if response.status_code in (429, 503):
        raise _InterruptedError("the service is not ready", _asked_pause(response))
    return _accepted(response)


def _verify(path: Path, response: httpx2.Response) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if response.headers.get("repr-digest") != f"sha-256=:{base64.b64encode(found).decode()}:":
        raise CheckpointError(f"the download was damaged on its way: its SHA-256 is {found.hex()}; try again")


def _file_name(response: httpx2.Response) -> str:
    _, _, name = response.headers.get("content-disposition", "").partition("filename=")
    return Path(name.strip('"')).name or "checkpoint.tar"
