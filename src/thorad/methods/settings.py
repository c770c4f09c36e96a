"""Values of a method's own options, given by name: for ablations, and for what has to be chosen for each data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from thorad.errors import ThoradError
from thorad.methods.contract import Options

DECIDED_ELSEWHERE: Final = {"noise_level", "steps", "finish", "size", "patch"}
"""Options that a detector's own arguments or the model decide, as it does all that are no plain values."""


def settable(options: Options) -> dict[str, Any]:
    """{name: value} of the options that may be given."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}  # type: ignore[arg-type]  # Options are dataclasses
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in values.items() if name not in DECIDED_ELSEWHERE and isinstance(value, plain)}


def with_settings(method: str, options: Options, settings: Mapping[str, Any]) -> Options:
    """Options with other values.

    Args:
        method: the method's name, for messages.
        options: a method's own, a dataclass.
        settings: {name: value}; a value may be text, as of a command line: `0.13`, `200,100,50`, `true`.

    Raises:
        ThoradError: an option that the method doesn't have, or a value that it can't take.
    """
    if not settings:
        return options
    known, hints = settable(options), get_type_hints(type(options))
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            raise ThoradError(f"method {method!r} has no option {name!r} to set. It has {', '.join(known) or 'none'}.")
        parts = value.split(",") if get_origin(hints[name]) is tuple and isinstance(value, str) else value
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(parts)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ThoradError(f"option {name!r} of method {method!r} can't be {value!r}: {reason}.") from error
    try:
        changed: Options = replace(options, **values)  # type: ignore[type-var]  # as above
        changed.network_calls()
    except ValueError as error:
        raise ThoradError(f"method {method!r} can't run so: {error}.") from error
    return changed
