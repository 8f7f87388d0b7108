"""What a call is told reaches the persona as the owner's model, and what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    Secret,
    SecretStr,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from agent import entrypoint
from agent.conversation import CallAgent, ConfigError, per_call
from agent.lifecycle import Call, Reason
from agent.memory import Profile
from agent.transport import Caller
from template.tests.talk import talk


class Order(BaseModel):
    number: int = 0
    phone: str | None = Field(None, alias="sip.phoneNumber")
    pin: SecretStr | None = Field(None, min_length=4)


class Persona(CallAgent):
    order = per_call(Order)

    def __init__(self, call: Call) -> None:
        language = type(self).order.of(call).number
        super().__init__(call, instructions=f"Order {language}.")

    def greeting(self, profile: Profile | None) -> str:
        return f"Order {self.order.number} of {self.order.phone}."


class Needed(BaseModel):
    tenant: str
    port: int = 1

    @field_validator("port")
    @classmethod
    def _is_open(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 is closed")
        return value


class Together(BaseModel):
    first: int = 1
    last: int = 2

    @model_validator(mode="after")
    def _in_order(self) -> Together:
        if self.last < self.first:
            raise ValueError("the last is before the first")
        return self


@pytest.fixture(autouse=True)
def persona(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", Persona)


def persona_with(model: type[BaseModel]) -> Callable[[Call], CallAgent]:
    class Other(CallAgent):
        order = per_call(model)

        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="")

        def greeting(self, profile: Profile | None) -> str:
            return repr(self.order)

    return Other


async def test_fields_come_from_the_metadata_and_the_callers_attributes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = {"sip.phoneNumber": "+491", "number": "7", "lk.other": "x"}
    async with talk(Caller("ann", attributes=told), metadata='{"number": 1042}') as call:
        # the metadata is the back end's, attributes a front end may be allowed to change
        assert call.said == ["Order 1042 of +491."]
        assert call.call.persona.instructions == "Order 1042."
    assert "not usable" not in caplog.text


async def test_nothing_is_needed_where_everything_has_a_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with talk() as call:
        assert call.said == ["Order 0 of None."]
    assert "default" not in caplog.text


async def test_a_wrong_value_is_said_once_and_the_default_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = {"sip.phoneNumber": "+491"}
    async with talk(Caller("ann", attributes=told), metadata='{"number": "soon"}') as call:
        assert call.said == ["Order 0 of +491."]
    (warning,) = [record for record in caplog.records if "number" in record.getMessage()]
    sentence = warning.getMessage()
    assert sentence.startswith("Order: number is not usable (")
    assert "given was 'soon'" in sentence
    assert sentence.endswith("the default is used")
    assert warning.__dict__["fields"]["call"] == call.call.transport.call_id


async def test_a_secret_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with talk(metadata='{"pin": "987", "number": 3}') as call:
        assert call.said == ["Order 3 of None."]
    assert "pin is not usable" in caplog.text
    assert "987" not in caplog.text


class Login(TypedDict):
    pin: SecretStr


@dataclass
class Account:
    pin: SecretStr


class ByPath(BaseModel):
    pin: SecretStr = Field(SecretStr(""), validation_alias=AliasPath("login", "pin"))


class BySomePath(BaseModel):
    choices: ClassVar = AliasChoices("pin", AliasPath("login", "pin"))
    pin: SecretStr = Field(SecretStr(""), validation_alias=choices)


class OfANumber(BaseModel):
    login: Secret[int] | None = None


class OfADict(BaseModel):
    login: Login | None = None


class OfADataclass(BaseModel):
    login: list[Account] | Account | None = None


@pytest.mark.parametrize("model", [ByPath, BySomePath, OfANumber, OfADict, OfADataclass])
async def test_a_secret_of_any_form_is_in_no_log(
    model: type[BaseModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", persona_with(model))
    async with talk(metadata='{"login": {"pin": 987987}}'):
        pass
    assert "is not usable" in caplog.text
    assert "987987" not in caplog.text


@pytest.mark.parametrize("metadata", ["what it is about", "[1]", "1042", '{"number": '])
async def test_metadata_of_another_form_is_said_and_the_call_goes_on(
    metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with talk(metadata=metadata) as call:
        assert call.said == ["Order 0 of None."]
    assert caplog.text.count("no JSON object") == 1


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ("", "Needed: tenant is missing"),
        ('{"tenant": 5}', "Needed: tenant is not usable (Input should be a valid string; given"),
    ],
)
async def test_a_call_ends_with_an_apology_where_a_field_has_no_default(
    metadata: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: list[str] = []
    reasons: list[str] = []

    class Polite(CallAgent):
        order = per_call(Needed)

        def __init__(self, call: Call) -> None:
            super().__init__(call, instructions="")

        def goodbye(self, reason: str) -> str:
            reasons.append(reason)
            said.append(super().goodbye(reason))
            return said[-1]

    monkeypatch.setattr(entrypoint, "build_persona", Polite)
    with pytest.raises(AssertionError, match="ended before it began"):
        async with talk(metadata=metadata):
            pass
    assert sentence in caplog.text
    assert "I am sorry" in said[0]
    assert reasons == [Reason.error(6, "load the caller's data and greet")]


async def test_the_owners_own_checks_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", persona_with(Needed))
    async with talk(metadata='{"tenant": "a", "port": 13}') as call:
        assert call.said == ["Needed(tenant='a', port=1)"]
    assert "13 is closed" in caplog.text


async def test_fields_that_do_not_fit_together_are_all_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entrypoint, "build_persona", persona_with(Together))
    async with talk(metadata='{"first": 9, "other": "secret-7"}') as call:
        assert call.said == ["Together(first=1, last=2)"]
    assert "the last is before the first" in caplog.text
    assert "secret-7" not in caplog.text


async def test_before_the_caller_is_known_the_metadata_has_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def build(call: Call) -> CallAgent:
        try:
            per_call(Needed).of(call)
        except ConfigError as error:
            seen.append(str(error))
        return persona_with(Needed)(call)

    monkeypatch.setattr(entrypoint, "build_persona", build)
    async with talk(Caller("ann", attributes={"tenant": "a"})) as call:
        assert call.said == ["Needed(tenant='a', port=1)"]
    assert seen == ["Needed, before the caller is known: tenant is missing"]
