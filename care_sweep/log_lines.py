"""What may a log line hold? One line that steers no terminal and tells no secret."""

import logging
import re
from types import TracebackType
from typing import Any

from care_sweep.terminal import printable

__all__ = ["begin_logging", "without_secrets"]

_TOKEN = re.compile(r"cs_[A-Za-z0-9_-]{20,}")
_PASSWORD = re.compile(r"(?<=://)\S*@")  # with who asks, for that may be a token
_PARAMETER = re.compile(r"(?<=password=)[^&\s]+")


def begin_logging(line_format: str) -> None:
    """Have this process log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(line_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def without_secrets(text: str) -> str:
    """Text in which API tokens and the passwords of URLs are three stars."""
    return _PARAMETER.sub("***", _PASSWORD.sub("***@", _TOKEN.sub("cs_***", text)))


class _Formatter(logging.Formatter):
    """Of a message no line break is left, for what follows one would look like a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        return printable(without_secrets(super().formatMessage(record))).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        error: tuple[type[BaseException], BaseException, TracebackType | None] = ei
        return printable(without_secrets(super().formatException(error)))
