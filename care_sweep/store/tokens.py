"""Who may ask? API tokens: 256 random bits that are shown once and kept as their SHA-256.

So many bits cannot be guessed, so a plain hash keeps them; and who measures how long a look-up of a hash
takes learns nothing, for nobody can choose a token by its hash.
"""

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence

from sqlalchemy import Engine, RowMapping, insert, select, update

from care_sweep.errors import Conflict, InvalidDocument, NotFound, Problem
from care_sweep.store.audit import note
from care_sweep.store.database import reading, writing
from care_sweep.store.records import UNLIMITED, Caller, Quota, Scope, TokenRecord
from care_sweep.store.schema import tokens

__all__ = ["Tokens"]

_PREFIX = "cs_"  # by which secret scanners, and people, know it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_OPERATOR = Caller("operator", Scope.ADMIN)
_COLUMNS = [column for column in tokens.c if column.name != "sha256"]


class Tokens:
    """The tokens of a database. Every method is one transaction and may be called from any thread."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def create(
        self, owner: str, scope: Scope, *, expires_in_seconds: float | None, quota: Quota = UNLIMITED
    ) -> tuple[str, TokenRecord]:
        """A new token: its text, which is kept nowhere, and what is kept of it.

        Tokens of one owner see the same sweeps: one can take another's place before that one is revoked.

        Raises:
            InvalidDocument: the owner's name is unfit.
        """
        if not _NAME.fullmatch(owner):
            detail = "must begin with a letter or digit and hold at most 100 of these and of . _ @ -"
            raise InvalidDocument([Problem("/name", detail, owner[:100])])
        text, now = _PREFIX + secrets.token_urlsafe(32), self._clock()
        expires_at = None if expires_in_seconds is None else now + expires_in_seconds
        made = TokenRecord(secrets.token_hex(4), owner, scope, now, expires_at, revoked_at=None, quota=quota)
        row = {**vars(made), **vars(quota), "sha256": _sha256(text)}
        del row["quota"]
        with writing(self._engine) as connection:
            connection.execute(insert(tokens).values(row))
            note(connection, _OPERATOR, "create token", made.id, scope, now)
        return text, made

    def list(self) -> Sequence[TokenRecord]:
        """All there ever were, oldest first."""
        query = select(*_COLUMNS).order_by(tokens.c.created_at, tokens.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
        return [_record(row) for row in rows]

    def revoke(self, token_id: str) -> None:
        """End a token for good.

        Raises:
            NotFound: there is no such token.
            Conflict: it was revoked before.
        """
        this, now = tokens.c.id == token_id, self._clock()
        with writing(self._engine) as connection:
            query = update(tokens).where(this, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
            if connection.execute(query).rowcount == 0:
                if connection.execute(select(tokens.c.id).where(this)).first() is None:
                    raise NotFound(f"there is no token {token_id!r}; `care-sweep token list` shows all")
                raise Conflict(f"token {token_id} was revoked before")
            note(connection, _OPERATOR, "revoke token", token_id, "revoked", now)

    def caller(self, text: str) -> Caller | None:
        """Whose token this is; None where it is unknown, expired or revoked."""
        query = select(*_COLUMNS).where(tokens.c.sha256 == _sha256(text), tokens.c.revoked_at.is_(None))
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None or (row.expires_at is not None and row.expires_at <= self._clock()):
            return None
        return Caller(row.owner, Scope(row.scope), row.id)


def _record(row: RowMapping) -> TokenRecord:
    fields = dict(row)
    quota = Quota(**{field.name: fields.pop(field.name) for field in dataclasses.fields(Quota)})
    return TokenRecord(**{**fields, "scope": Scope(row["scope"]), "quota": quota})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
