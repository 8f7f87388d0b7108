"""What a call costs: what its models have used, and its minutes, by a dated table of prices."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.reports import Cost
from agent.settings import SettingsError

TABLE = Path(__file__).with_name("prices.toml")
MILLION = 1_000_000
# models of the template's own: they run here, and cost nothing
FREE = {"agent"}


class _Prices(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokenPrices(_Prices):
    """Of a million tokens; `cached` ones are counted as input, too."""

    input: float = Field(0, ge=0)
    cached: float | None = Field(None, ge=0)
    output: float = Field(0, ge=0)


class MinutePrice(_Prices):
    """Of a minute of sound."""

    minute: float = Field(ge=0)


class CharacterPrice(_Prices):
    """Of a million characters."""

    characters: float = Field(ge=0)


class Prices(_Prices):
    """A table of prices, by model; of a model such as provider/name the name."""

    date: str
    currency: str = "USD"
    llm: dict[str, TokenPrices] = {}
    stt: dict[str, MinutePrice] = {}
    tts: dict[str, CharacterPrice] = {}
    minutes: dict[Literal["room", "phone"], float] = {}


@lru_cache(maxsize=4)
def load_prices(home: Path) -> Prices:
    """The template's prices, and the owner's `prices.toml` over them; raises SettingsError.

    A table in another currency stands alone.
    """
    known = Prices.model_validate(tomllib.loads(TABLE.read_text(encoding="utf-8")))
    own = home / "prices.toml"
    try:
        given = Prices.model_validate(tomllib.loads(own.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return known
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            [f"{own} cannot be read ({error}): write it again, or delete it"]
        ) from error
    except ValidationError as error:
        problems = [
            f"{own}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        ]
        raise SettingsError(problems) from error
    if given.currency != known.currency:
        return given
    return Prices(
        date=given.date,
        currency=given.currency,
        llm={**known.llm, **given.llm},
        stt={**known.stt, **given.stt},
        tts={**known.tts, **given.tts},
        minutes={**known.minutes, **given.minutes},
    )


def cost_of(
    usage: Iterable[Any], seconds: Mapping[Literal["room", "phone"], float], prices: Prices
) -> Cost:
    """The cost of what models have used (`session.usage.model_usage`), and of so many seconds."""
    parts, unpriced = dict[str, float](), list[str]()

    def add(part: str, cost: float | None) -> None:
        if cost is None:
            unpriced.append(part)
        else:
            parts[part] = parts.get(part, 0.0) + cost

    for used in usage:
        kind = str(getattr(used, "type", "")).removesuffix("_usage")
        if kind in ("llm", "stt", "tts") and used.provider not in FREE:
            name = used.model.rpartition("/")[2]
            add(f"{kind} {name}", _of_model(kind, name, used, prices))
    for what, lasted in seconds.items():
        if lasted and what in prices.minutes:
            add(what, lasted / 60 * prices.minutes[what])
    total = sum(parts.values())
    return Cost(total, prices.currency, prices.date, parts, unpriced)


def _of_model(kind: str, name: str, used: Any, prices: Prices) -> float | None:
    if kind == "llm" and (tokens := prices.llm.get(name)):
        cached = used.input_cached_tokens
        cached_price = tokens.input if tokens.cached is None else tokens.cached
        new = used.input_tokens - cached
        paid = new * tokens.input + cached * cached_price + used.output_tokens * tokens.output
        return float(paid) / MILLION
    if kind == "stt" and (sound := prices.stt.get(name)):
        return float(used.audio_duration) / 60 * sound.minute
    if kind == "tts" and (voice := prices.tts.get(name)):
        return float(used.characters_count) * voice.characters / MILLION
    return None
