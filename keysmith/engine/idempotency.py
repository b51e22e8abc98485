"""Idempotency: a request that comes again because its answer was lost is carried out once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter

from keysmith.engine.context import Tenancy
from keysmith.errors import NotFoundError, RequestMismatchError, RequestRepeatedError
from keysmith.models import Key, Rotation
from keysmith.models.base import HIDE_INPUT

IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

_idempotency_key: TypeAdapter[str] = TypeAdapter(IdempotencyKey, config=HIDE_INPUT)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a request leaves behind, in the row that it made, by which it is known again."""

    request_token: str
    """Which request it is: a hash of its idempotency key, and of whose it is."""
    request_digest: str
    """What it asks for, as a hash."""

    @classmethod
    def of(cls, tenancy: Tenancy, idempotency_key: str, asked: dict[str, Any]) -> Mark:
        """The mark of a request. Raises `ValidationError` for what is no idempotency key."""
        key = _idempotency_key.validate_python(idempotency_key)
        whose = tenancy.filters()
        return cls(_hash({"key": key, **whose}), _hash(asked))

    def refuse_again(self, find: Callable[[str], Key | Rotation]) -> None:
        """Raises if there is a row with this mark: the request was carried out before.

        `RequestRepeatedError`, or `RequestMismatchError` if that asked for something else.
        """
        try:
            found = find(self.request_token)
        except NotFoundError:
            return
        if found.request_digest != self.request_digest:
            raise RequestMismatchError
        raise RequestRepeatedError(key_id=found.id if isinstance(found, Key) else found.key_id)


def _hash(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
