"""What one call is told: its job's metadata and its caller's attributes, as a model of the owner's.

A wrong value is named in the log, and the model's default is used; a field without a default is
one that the call cannot do without.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints, overload

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
)

from agent.lifecycle import Call

log = logging.getLogger("agent.call")
M = TypeVar("M", bound=BaseModel)

LONGEST_SHOWN = 80  # characters of a wrong value


# an AttributeError, because the SDK looks at every attribute of an agent before there is a caller
class ConfigError(AttributeError):
    """What the call was told lacks something that it cannot do without: which, and what it is."""


class PerCall(Generic[M]):
    """An attribute of an agent: what its call was told."""

    def __init__(self, model: type[M]) -> None:
        self.model = model

    @overload
    def __get__(self, agent: None, kind: type) -> PerCall[M]: ...
    @overload
    def __get__(self, agent: Any, kind: type) -> M: ...
    def __get__(self, agent: Any, kind: type) -> PerCall[M] | M:
        return self if agent is None else self.of(agent.call)

    def of(self, call: Call) -> M:
        """What `call` was told; before its caller is known, by its metadata alone.

        Raises ConfigError if a field is missing, or wrong, that has no default.
        """
        key = self.model, call.caller is not None
        if key not in call.configs:
            call.configs[key] = _read(call, self.model)
        read: M = call.configs[key]
        return read


def per_call(model: type[M]) -> PerCall[M]:
    """What a call was told, as an attribute of its agent.

    `order = per_call(Order)` in a persona, and `self.order` is that of its call. The fields of the
    pydantic model are read from the job's metadata, a JSON object, and from the caller's
    attributes; the metadata wins. Use `.of(call)` where there is no `self` yet.
    """
    return PerCall(model)


def read_all(agent: object, call: Call) -> None:
    """Read what an agent declares, so that what is missing is known before the greeting."""
    for _, declared in inspect.getmembers_static(type(agent)):
        if isinstance(declared, PerCall):
            declared.of(call)


def _read(call: Call, model: type[M]) -> M:
    given = {**_attributes(call, model), **_metadata(call)}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = list(error.errors())
    wrong = {str(one["loc"][0]) for one in first if one["loc"]}
    # an error of none of its fields is one of how they fit together
    left = {name: value for name, value in given.items() if name not in wrong} if wrong else {}
    try:
        read = model.model_validate(left)
    except ValidationError as error:
        needed = "; ".join(
            dict.fromkeys(_sentence(model, one) for one in [*first, *error.errors()])
        )
        known = "" if call.caller else ", before the caller is known"
        raise ConfigError(f"{model.__name__}{known}: {needed}") from None
    for one in first:
        _warn(call, f"{model.__name__}: {_sentence(model, one)}; the default is used")
    return read


def _metadata(call: Call) -> dict[str, Any]:
    if not call.metadata.strip():
        return {}
    try:
        told = json.loads(call.metadata)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        _warn(call, "the metadata of this call is no JSON object, so no field is read from it")
        return {}
    return told


def _attributes(call: Call, model: type[BaseModel]) -> dict[str, Any]:
    """Those of the caller that are fields; others are LiveKit's and the front end's."""
    if call.caller is None:
        return {}
    names = {name for field in model.model_fields for name in _names(model, field)}
    return {name: value for name, value in call.caller.attributes.items() if name in names}


def _names(model: type[BaseModel], field: str) -> Iterator[str]:
    """Under which names a field may be given."""
    yield field
    alias = model.model_fields[field].validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    for choice in choices:
        name = choice.path[0] if isinstance(choice, AliasPath) else choice
        if isinstance(name, str):
            yield name


def _sentence(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    """What is wrong with a field, and what was given; nothing of a secret."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{name} is missing"
    if not name:
        secret = _is_secret(model)
        return f"its fields do not fit together ({error['type'] if secret else error['msg']})"
    fields = [one for one in model.model_fields if error["loc"][0] in _names(model, one)]
    if any(_is_secret(model.model_fields[one].annotation) for one in fields):
        return f"{name} is not usable ({error['type']}; it is secret)"
    shown = repr(error["input"])
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}…"
    return f"{name} is not usable ({error['msg']}; given was {shown})"


def _is_secret(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes | Secret):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(_is_secret(field.annotation) for field in annotation.model_fields.values())
    # of a dataclass or a TypedDict
    fields = get_type_hints(annotation) if isinstance(annotation, type) else {}
    parts = (get_origin(annotation), *get_args(annotation), *fields.values())
    return any(_is_secret(part) for part in parts if part is not annotation)


def _warn(call: Call, sentence: str) -> None:
    """Once a call: what is read before the caller is known is read again."""
    if sentence not in call.configs:
        call.configs[sentence] = None
        log.warning("%s", sentence, extra=call.journal.fields())
