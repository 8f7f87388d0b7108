"""Callers are remembered under the right key or not at all."""

from __future__ import annotations

import random
import string
import uuid

import pytest

from agent.memory.identity import key_of, keys_of


def phone(number: str) -> dict[str, str]:
    return {"sip.phoneNumber": number}


@pytest.mark.parametrize(
    "identity",
    [
        "ann",
        "ann-lee",
        "Ann Lee",
        "customer-1042",
        "ann@example.com",
        "user-ann",
        "JohnSmith",
        "McDonald",
        "田中",
        "terminal-ann",
    ],
)
def test_a_caller_is_known_by_the_identity_of_the_token(identity: str) -> None:
    assert key_of(identity, "standard", {}, phones=False) == identity


SHARED = """
    identity-AbCd identity_x7 user-x7Kp user-4821 user_k3j9x2 user user-xkqz
    voice_assistant_user_4821 guest guest-17 Guest42 anon anonymous Anonymous-3 anon_f00 visitor-12
    participant-7 caller web-user-17 playground unknown client undefined sip_+15551234567
    sip_anonymous tel:+15551234567 +15551234567 1735689600000 k3j9x2q ab1cd2ef
"""


@pytest.mark.parametrize("identity", [*SHARED.split(), "", "  ", "+1 555 123-4567", "x" * 257])
def test_shared_and_made_up_identities_are_nobodys(identity: str) -> None:
    assert key_of(identity, "standard", {}, phones=True) is None


def test_random_identities_are_nobodys() -> None:
    chance = random.Random(11)
    base36, base62 = string.ascii_lowercase + string.digits, string.ascii_letters + string.digits
    for _ in range(300):
        number = uuid.UUID(int=chance.getrandbits(128), version=4)
        made_up = [
            str(number),
            number.hex,
            f"ann-{number}",
            f"{chance.getrandbits(128):032x}",
            f"identity-{''.join(chance.choices(string.ascii_letters, k=4))}",
            f"user-{chance.randrange(10_000)}",
            f"user-{''.join(chance.choices(base36, k=7))}7",
            f"guest-{''.join(chance.choices(base62, k=8))}",
            "".join(chance.choices(base62, k=27)),
        ]
        assert [
            identity
            for identity in made_up
            if key_of(identity, "standard", {}, phones=True) is not None
        ] == []


def test_phone_callers_are_remembered_only_where_the_owner_opted_in() -> None:
    assert key_of("sip_+15551234567", "sip", phone("+15551234567"), phones=False) is None
    for number in (phone("+1 (555) 123-4567"), phone("+15551234567"), {}):
        assert key_of("sip_+15551234567", "sip", number, phones=True) == "tel:+15551234567"


@pytest.mark.parametrize(
    "number",
    [
        "",
        "anonymous",
        "Restricted",
        "unknown",
        "0000000000",
        "+266696687",
        "7378742883",
        "12",
        "sip:ann@example.com",
    ],
)
def test_withheld_numbers_are_nobodys(number: str) -> None:
    assert key_of("sip_+15551234567", "sip", phone(number), phones=True) is None


@pytest.mark.parametrize("kind", ["agent", "egress", "ingress", "connector", ""])
def test_who_is_no_caller_is_not_remembered(kind: str) -> None:
    assert key_of("ann", kind, phone("+15551234567"), phones=True) is None


def test_no_identity_in_a_token_has_the_key_of_a_phone() -> None:
    key = key_of("sip_+15551234567", "sip", phone("+15551234567"), phones=True)
    assert key is not None
    for identity in (key, key.upper(), "+15551234567", "sip_+15551234567", "15551234567"):
        assert key_of(identity, "standard", phone("+15551234567"), phones=True) != key


def test_a_caller_to_forget_is_found_under_every_key() -> None:
    assert keys_of("ann") == ["ann"]
    for typed in ("+1 (555) 123-4567", "tel:+15551234567", "sip_+15551234567", "15551234567"):
        assert {typed, "tel:+15551234567"} <= set(keys_of(typed))
