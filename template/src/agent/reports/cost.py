"""What a call costs: what its models have used, and its minutes, by a dated table of prices."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date as Date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.reports import Cost
from agent.settings import SettingsError

TABLE = Path(__file__).with_name("prices.toml")
MILLION = 1_000_000
# models of the template's own: they run here, and cost nothing
FREE = {"agent"}

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Prices(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Tokens(_Prices):
    """Of a million tokens; without a price of their own, cached ones cost as others."""

    input: Price
    cached: Price | None = None
    output: Price

    def cost(self, input: int, cached: int, output: int) -> float:
        """Of so many tokens; `input` has the cached ones, too."""
        cached_price = self.input if self.cached is None else self.cached
        paid = (input - cached) * self.input + cached * cached_price + output * self.output
        return paid / MILLION


class TokenPrices(_Tokens):
    """Of a language model; `written` are tokens that were put into a cache, `audio` those of sound.

    What is written is counted as input, too, and so is sound.
    """

    written: Price | None = None
    audio: _Tokens | None = None


class MinutePrice(_Prices):
    """Of a minute of sound."""

    minute: Price


class CharacterPrice(_Prices):
    """Of a million characters."""

    characters: Price


class Prices(_Prices):
    """A table of prices, by model, as its provider calls it."""

    date: str
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    llm: dict[str, TokenPrices] = {}
    stt: dict[str, MinutePrice] = {}
    tts: dict[str, CharacterPrice] = {}
    minutes: dict[Literal["room", "phone"], Price] = {}

    @field_validator("date", mode="before")
    @classmethod
    def _date_may_be_tomls(cls, value: object) -> object:
        return value.isoformat() if isinstance(value, Date) else value


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
            f"{own}: {'.'.join(map(str, one['loc']))}: {one['msg']}: docs/agent/reports.md has an"
            " example"
            for one in error.errors()
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
            add(f"{kind} {used.model}", _of_model(kind, used, prices))
    for what, lasted in seconds.items():
        if lasted:
            price = prices.minutes.get(what)
            # as LiveKit Cloud and most telephone companies count
            add(what, None if price is None else math.ceil(lasted / 60) * price)
    total = sum(parts.values())
    return Cost(total, prices.currency, prices.date, parts, unpriced)


def _of_model(kind: str, used: Any, prices: Prices) -> float | None:
    """None where there is no price for all of it."""
    if kind == "llm" and (tokens := prices.llm.get(used.model)):
        return _of_tokens(used, tokens)
    if kind == "stt" and (sound := prices.stt.get(used.model)):
        return float(used.audio_duration) / 60 * sound.minute
    if kind == "tts" and (voice := prices.tts.get(used.model)):
        return float(used.characters_count) * voice.characters / MILLION
    return None


def _of_tokens(used: Any, prices: TokenPrices) -> float | None:
    heard, spoken = used.input_audio_tokens, used.output_audio_tokens
    cached_sound = used.input_cached_audio_tokens
    cost = prices.cost(
        used.input_tokens - heard,
        used.input_cached_tokens - cached_sound,
        used.output_tokens - spoken,
    )
    if prices.written is not None:
        cost += used.input_cache_creation_tokens * (prices.written - prices.input) / MILLION
    if not heard and not spoken:
        return cost
    return None if prices.audio is None else cost + prices.audio.cost(heard, cached_sound, spoken)
