"""Request bodies: strict JSON, or a multipart form with a file and its options as JSON, each checked by its model.

JSON is decoded here and not by the framework, which would take repeated keys, NaN, Infinity and half of a surrogate
pair, and fail on them later.
"""

import json
import math
import re
import reprlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header

from chromseek.data.errors import BadArgument, printable
from chromseek.service.uploads import Upload, receive, upload_folder

LISTED = 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxstring = 2, 80
R = TypeVar("R", bound=BaseModel)
U = TypeVar("U", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Asked(Generic[R, U]):
    """What was asked: a request with its query, or options with an upload."""

    options: R | U
    upload: Upload | None  # removed when the request ends


class Body(Generic[R, U]):
    """A dependency: reads the body, as JSON by one model or as multipart by another, and removes what it stored."""

    def __init__(self, request: type[R], upload: type[U]) -> None:
        self._request, self._upload = request, upload

    async def __call__(self, request: Request) -> AsyncIterator[Asked[R, U]]:
        """Yield what was asked.

        Raises BadArgument: 415 for another content type, 413 for a body that is too long, 400 for a broken form.
        """
        kind = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")
        if kind == "application/json":
            yield Asked(checked(self._request, strict_json(await request.body())), None)
        elif kind == "multipart/form-data":
            with upload_folder(request.app.state.service.uploads) as folder:
                raw, upload = await receive(request, folder)
                yield Asked(checked(self._upload, strict_json(raw)), upload)
        else:
            raise BadArgument(
                f"content type {printable(kind) or 'missing'}",
                code="REQUEST-TYPE",
                got=printable(kind),
                fix="send application/json, or multipart/form-data with a file",
                status=415,
            )


def strict_json(raw: bytes) -> Any:
    """Decode JSON.

    Raises BadArgument for what is none, for repeated keys, NaN, Infinity, numbers past float64, and text that no
    encoding can write.

    >>> strict_json(b'{"k": 5}')
    {'k': 5}
    """
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except BadArgument:
        raise
    except RecursionError as error:
        raise _bad("it nests too deeply") from error
    except UnicodeEncodeError as error:
        raise _bad(r"it holds half of a surrogate pair (\ud800 to \udfff)") from error
    except UnicodeDecodeError as error:
        raise _bad(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _bad(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise _bad("a number is too long") from error
    return value


def checked(model: type[R], value: Any) -> R:
    """Make a model of decoded JSON. Raises BadArgument with the first twenty faults, all counted."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    told = [f"{_place(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults[:LISTED]]
    more = [f"and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
    first = faults[0]
    field = model.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    raise BadArgument(
        printable("; ".join([*told, *more]), 4_000),
        code="REQUEST-FIELD",
        got=printable(_shown.repr(first["input"])),
        fix=field.description or "" if field is not None else f"the fields are {', '.join(model.model_fields)}",
    )


def _place(loc: tuple[int | str, ...]) -> str:
    """Where a fault lies, as in `query.vectors[0][3]`; the tags of unions are no places."""
    place, last = "", None
    for step in loc:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step != last and not re.fullmatch(r"str|list\[.*\]", step):
            place += f".{step}"
        last = step
    return printable(place.lstrip(".")) or "body"


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _bad(f"key {printable(next(key for key in keys if keys.count(key) > 1))} comes twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text)
    return number


def _refuse_number(text: str) -> NoReturn:
    raise _bad(f"{printable(text)} is not a finite number")


def _bad(reason: str) -> BadArgument:
    return BadArgument(
        f"the body is not good JSON: {reason}", code="REQUEST-JSON", fix="see the examples in /openapi.json"
    )
