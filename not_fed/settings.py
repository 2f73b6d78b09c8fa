"""Settings files: TOML in, a frozen checked object out, and an error that names the file and the field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from not_fed import files
from not_fed.errors import InputError

MAX_SETTINGS_BYTES = 1 << 20

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # as keys.identity.NAME
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pair = Annotated[tuple[int, int], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


class BadSettings(InputError):
    """A settings file says something that cannot be."""

    code = "bad-settings"


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, values are never converted, objects never change."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def load(model: type[Model], path: Path) -> Model:
    """Read one settings file.

    Raises:
        BadSettings: it is not TOML, or a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        value: Any = tomllib.loads(files.read_regular(path, max_bytes=MAX_SETTINGS_BYTES).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(
            where=str(path), expected="a TOML file", got=str(error), hint="correct the line that it names"
        ) from None
    return check(model, value, where=str(path))


def check(model: type[Model], value: object, *, where: str) -> Model:
    """Check parsed settings; the error names the first field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        others = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise BadSettings(
            where=f"{where}, field {field}",
            expected=_expected(first["msg"]),
            got=_KINDS.get(first["type"], "something else") + others,
            hint="correct this field and try again",
        ) from None


_KINDS = {"missing": "no such field", "extra_forbidden": "a field that not-fed does not know"}


def _expected(message: str) -> str:
    """Pydantic's sentence as the end of ours: 'Input should be a valid string' -> 'a valid string'."""
    text = message.removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Input should ")
    return {"Field required": "a value", "Extra inputs are not permitted": "only known fields"}.get(
        text, text[:1].lower() + text[1:]
    )
