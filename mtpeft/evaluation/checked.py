"""Plain JSON to strict dataclasses, with errors that name the field."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mtpeft.errors import DataError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_PLAIN = {"missing": "is missing", "unexpected_keyword_argument": "is not a field of this file"}

T = TypeVar("T")


def parse(kind: type[T], data: Any, where: str) -> T:
    """``data`` as a ``kind``, whose ``__pydantic_config__`` is `STRICT`.

    Raises:
        DataError: naming ``where`` and the first field that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data))
    except ValidationError as error:
        problem, more = error.errors()[0], error.error_count() - 1
        name = ".".join(str(step) for step in problem["loc"]) or "the whole"
        reason = _PLAIN.get(problem["type"], problem["msg"][0].lower() + problem["msg"][1:])
        hint = f"{more} more fields are wrong" if more else "compare it with what a training run writes"
        raise DataError(f"{where}: {name}: {reason}", hint=hint) from None
