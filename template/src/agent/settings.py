"""Everything the agent takes from its environment, read once.

In-code defaults < `defaults.toml` beside this file (what was answered when the project was made)
< `.env.local` < the environment. No other module reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from base64 import b64decode
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from dotenv import load_dotenv
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
DEFAULTS = Path(__file__).with_name("defaults.toml")


class SettingsError(Exception):
    """What is wrong with the environment, one line a problem, each with what to do about it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def find_home() -> Path:
    """The project's root: AGENT_HOME, the nearest parent with a `.template.toml`, the install's.

    Raises SettingsError if that is a project, and this package belongs to another one.
    """
    here = Path(__file__).resolve()
    installed = project_above(here)
    if given := os.environ.get("AGENT_HOME"):
        asked: Path | None = Path(given).expanduser().resolve()
    else:
        asked = project_above(Path.cwd().resolve())
    if asked and installed and is_project(asked) and not asked.samefile(installed):
        problem = f"{asked} would run the code of {installed}, and two agents share no environment"
        shared = "exclude one from their uv workspace, delete its .venv and `uv sync` in both"
        cure = f"{shared} (docs/agent/ownership.md), or deactivate the other's environment"
        raise SettingsError([f"{problem}: {cure}"])
    return asked or installed or here.parents[2]


def project_above(path: Path) -> Path | None:
    """The nearest project that holds this path."""
    return next((folder for folder in (path, *path.parents) if is_project(folder)), None)


def is_project(folder: Path) -> bool:
    """Whether this folder is the root of a project of the template."""
    return (folder / ".template.toml").is_file() and (folder / "src" / "agent").is_dir()


class Settings(BaseSettings):
    """What the agent takes from its environment; times are seconds.

    Those whose description begins with "Expert:" are right as they are for nearly everybody.
    """

    model_config = SettingsConfigDict(
        env_prefix="AGENT_", extra="ignore", frozen=True, toml_file=DEFAULTS, populate_by_name=True
    )

    # LiveKit; the SDK reads the same names
    livekit_url: str = Field(
        default="",
        alias="LIVEKIT_URL",
        description="Your LiveKit server, such as wss://my-project.livekit.cloud.",
    )
    livekit_api_key: str = Field(
        default="", alias="LIVEKIT_API_KEY", description="API key of that server."
    )
    livekit_api_secret: SecretStr = Field(
        default=SecretStr(""), alias="LIVEKIT_API_SECRET", description="API secret of that server."
    )

    # what was answered when the project was made
    name: str = Field(
        default="my-agent",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Dispatch name: rooms ask for this agent by it.",
    )
    models: Literal["livekit", "providers", "selfhosted", "realtime", "scripted", "local"] = Field(
        default="livekit",
        description="Which models; scripted and local need no keys, and win over your persona's.",
    )
    knowledge: Literal["sqlite", "pgvector", "none"] = Field(
        default="sqlite", description="Where documents are looked up: sqlite, pgvector or none."
    )
    knowledge_url: SecretStr = Field(
        default=SecretStr(""),
        description="PostgreSQL of pgvector, such as postgresql://user:password@host:5432/name.",
    )
    memory_url: str = Field(
        default="sqlite",
        description="Where callers are remembered: sqlite, none, or the URL of a shared store.",
    )

    # where things are
    home: Path = Field(default_factory=find_home, description="The project's root.")
    data_dir: Path = Field(
        default=Path("data"), description="Where the agent writes; a volume in containers."
    )
    host: str = Field(
        default="", description="Where health and metrics are served; empty: on every interface."
    )
    port: int = Field(
        default=8081, ge=0, le=65535, description="Port of the worker's health endpoint."
    )
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the worker's Prometheus metrics; 0: none."
    )
    max_load: float = Field(
        default=0.7,
        gt=0,
        description="CPU load, 1 being all cores, above which no call is taken; inf: take all.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="How much is logged."
    )
    log_format: Literal["auto", "json", "readable"] = Field(
        default="auto", description="auto: readable in dev, else JSON lines."
    )
    idle_processes: int = Field(
        default=0,
        ge=0,
        description="Expert: processes kept ready, about 100 MB each; 0: one a core, 4 at most.",
    )

    # the models; docs/agent/models.md
    llm_model: str = Field(
        default="openai/gpt-6-luna",
        description="Language model: provider/model, or as your own server calls it.",
    )
    llm_fallback: str = Field(
        default="", description="Language model that stands in for it: provider/model."
    )
    llm_url: str = Field(default="", description="The /v1 URL of the server of the language model.")
    llm_key: SecretStr = Field(
        default=SecretStr(""), description="API key of that server, if it wants one."
    )
    stt_model: str = Field(
        default="deepgram/nova-3",
        description="Speech to text: provider/model, or as your own server calls it.",
    )
    stt_language: str = Field(
        default="multi", description="Language of the callers, such as en; multi detects it."
    )
    stt_fallback: str = Field(
        default="", description="Speech to text that stands in for it: provider/model."
    )
    stt_url: str = Field(default="", description="The /v1 URL of the server of speech to text.")
    stt_key: SecretStr = Field(
        default=SecretStr(""), description="API key of that server, if it wants one."
    )
    tts_model: str = Field(
        default="cartesia/sonic-3",
        description="Text to speech: provider/model, or as your own server calls it.",
    )
    tts_voice: str = Field(
        default="9626c31c-bec5-4cca-baa8-f8ba9e84c8bc",
        description="Voice of the model above; another provider's has its own unless you name one.",
    )
    tts_fallback: str = Field(
        default="", description="Voice that stands in for it: provider/model:voice."
    )
    tts_url: str = Field(default="", description="The /v1 URL of the server of text to speech.")
    tts_key: SecretStr = Field(
        default=SecretStr(""), description="API key of that server, if it wants one."
    )

    # turn taking
    turn_detection: Literal["auto", "cloud", "local", "vad", "stt"] = Field(
        default="auto",
        description="What ends a caller's turn; auto: cloud on LiveKit Cloud, else local.",
    )
    interruptions: Literal["auto", "adaptive", "vad", "off"] = Field(
        default="auto",
        description="What may cut the agent off; auto: adaptive on LiveKit Cloud, else vad.",
    )
    min_endpointing_seconds: float = Field(
        default=0, ge=0, description="A pause that ends a turn; 0: 0.3 (0.5 with vad or stt)."
    )
    max_endpointing_seconds: float = Field(
        default=0,
        ge=0,
        description="A pause that ends one that seems unfinished; 0: 2.5 (3 with vad or stt).",
    )

    # a realtime model, which hears, thinks and speaks
    realtime_model: str = Field(
        default="gpt-realtime-2.1", description="Realtime model, as its server names it."
    )
    realtime_voice: str = Field(default="marin", description="Voice of the model above.")
    realtime_url: str = Field(
        default="",
        description="The /v1 URL of a server with OpenAI's realtime protocol; empty: OpenAI's.",
    )
    realtime_key: SecretStr = Field(
        default=SecretStr(""), description="API key of that server; for OpenAI also OPENAI_API_KEY."
    )

    # what documents are found by, beside their words
    embeddings: str = Field(
        default="none",
        description="none, local (with the worker), or the /v1 URL of an OpenAI-compatible server.",
    )
    embeddings_model: str = Field(
        default="",
        description="Model, or (local) a folder; empty: all-MiniLM-L6-v2, text-embedding-3-small.",
    )
    embeddings_key: SecretStr = Field(
        default=SecretStr(""), description="API key of that server, if it wants one."
    )

    # how long things may take
    caller_wait_seconds: float = Field(
        default=60, gt=0, description="How long an empty room is kept open for its caller."
    )
    rejoin_seconds: float = Field(
        default=15,
        ge=0,
        description="How long a caller whose connection broke may take to come back.",
    )
    max_call_seconds: float = Field(
        default=3600, gt=0, description="The longest call; then the agent says goodbye."
    )
    max_call_cost: float = Field(
        default=0,
        ge=0,
        description="The dearest call, in the currency of its prices; then the agent says goodbye.",
    )
    max_silence_seconds: float = Field(
        default=60,
        gt=0,
        description="Silence after which the caller is asked, and as much again ends the call.",
    )
    reply_seconds: float = Field(
        default=10,
        gt=0,
        description="How long a model may keep the caller waiting before the agent apologises.",
    )
    tool_seconds: float = Field(default=20, gt=0, description="How long a tool may take.")
    tool_finish_seconds: float = Field(
        default=5,
        ge=0,
        description="How long a running tool may go on when the call has ended.",
    )
    goodbye_seconds: float = Field(
        default=8, gt=0, le=15, description="How long the last sentence may take."
    )
    close_seconds: float = Field(
        default=6,
        gt=0,
        le=8,
        description="How long all that a call opened may take to close, together; 8 at most.",
    )
    drain_seconds: int = Field(
        default=600, ge=0, description="How long a stopping worker lets its live calls go on."
    )
    stop_goodbye_seconds: float = Field(
        default=8,
        gt=0,
        le=15,
        description="Expert: how long the last sentence may take if the worker stops; in dev 0.5.",
    )

    # calls that the agent makes
    calls_to: str = Field(
        default="",
        description="Prefixes of the numbers that may be called, such as +49,+431; empty: none.",
    )
    sip_trunk: str = Field(
        default="", description="The outbound trunk that calls are made with: its id, ST_…"
    )
    ring_seconds: float = Field(
        default=30, gt=0, le=80, description="How long a phone that is called may ring."
    )

    key_seconds: float = Field(
        default=2, gt=0, description="How long a phone's key waits for the next one of a number."
    )

    # memory
    remember_phone_numbers: bool = Field(
        default=False, description="Whether callers are remembered by phone number."
    )
    memory_days: int = Field(
        default=30,
        gt=0,
        description="How long a caller is remembered after their last call, and its report kept.",
    )
    keep_transcripts: bool = Field(
        default=True,
        description="Whether what is said is kept; false: only facts, and that there was a call.",
    )
    memory_seconds: float = Field(
        default=0.5, gt=0, description="How long the greeting waits for what is remembered."
    )
    resume_seconds: float = Field(
        default=120,
        ge=0,
        description="Expert: how long after it broke off a call is resumed by calling again.",
    )

    # what is kept of every call
    calls_kept: int = Field(
        default=100, ge=0, description="How many calls' reports are kept, the newest; 0: none."
    )
    keep_strangers_words: bool = Field(
        default=False,
        description="Whether these have the words of callers, too, whom memory does not remember.",
    )
    redact: Literal["none", "cards", "numbers"] = Field(
        default="none",
        description="Left out of what is kept: cards; numbers: those, and any of six digits.",
    )
    record: Literal["none", "audio"] = Field(
        default="none", description="audio: both sides are recorded, and callers are told first."
    )
    recordings_url: str = Field(
        default="", description="Where recordings go: s3://bucket/folder; empty: AGENT_DATA_DIR."
    )
    after_call_seconds: float = Field(
        default=30, gt=0, le=60, description="How long `after_call` of your persona may take."
    )
    webhook_url: SecretStr = Field(
        default=SecretStr(""), description="Where each call's report is sent when it has ended."
    )
    webhook_secret: SecretStr = Field(
        default=SecretStr(""),
        validate_default=True,
        description="What these are signed with: whsec_ and 24 to 64 bytes as base64.",
    )

    # knowledge
    knowledge_lookup: Literal["before", "tool"] = Field(
        default="before",
        description="before: documents are looked up before each reply; tool: when the model asks.",
    )
    knowledge_seconds: float = Field(
        default=0.25, gt=0, description="How long an answer waits for the documents."
    )
    knowledge_floor: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Expert: how relevant a passage must be to be used, 0 to 1; 0: any.",
    )

    @field_validator("home", mode="before")
    @classmethod
    def _home_is_a_folder(cls, value: str | Path) -> Path:
        home = Path(value).expanduser().resolve() if str(value) else find_home()
        if not home.is_dir():
            raise ValueError(f"there is no folder {home}: correct it, or leave it out")
        return home

    @field_validator("livekit_url")
    @classmethod
    def _url_is_websocket(cls, value: str) -> str:
        if value and (
            _parts(value).scheme not in {"ws", "wss", "http", "https"} or not _parts(value).netloc
        ):
            such = "wss://my-project.livekit.cloud or ws://localhost:7880"
            raise ValueError(f"{value!r} is not an address: write one such as {such}")
        return value

    @field_validator("knowledge_url")
    @classmethod
    def _knowledge_url_is_postgresql(cls, value: SecretStr) -> SecretStr:
        if (url := value.get_secret_value()) and _parts(url).scheme not in {
            "postgresql",
            "postgres",
        }:
            raise ValueError(
                "write an address such as postgresql://user:password@localhost:5432/name"
            )
        return value

    @field_validator("embeddings")
    @classmethod
    def _embeddings_are_known(cls, value: str) -> str:
        if value not in {"none", "local"} and not (
            _parts(value).scheme in {"http", "https"} and _parts(value).netloc
        ):
            raise ValueError("write none, local, or an address such as http://localhost:11434/v1")
        return value.rstrip("/")

    @field_validator("llm_key", "stt_key", "tts_key", "realtime_key", "embeddings_key")
    @classmethod
    def _key_can_be_sent(cls, value: SecretStr) -> SecretStr:
        # others would be refused by HTTP clients, which quote them in their errors
        key = value.get_secret_value().strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise ValueError("it has characters that no key has, such as spaces: copy it again")
        return SecretStr(key)

    @field_validator("webhook_url")
    @classmethod
    def _webhook_is_an_address(cls, value: SecretStr) -> SecretStr:
        if (url := value.get_secret_value()) and not (
            _parts(url).scheme in {"http", "https"} and _parts(url).netloc
        ):
            raise ValueError("write an address such as https://example.com/calls")
        return value

    @field_validator("recordings_url")
    @classmethod
    def _recordings_go_to_a_bucket(cls, value: str) -> str:
        if value and (_parts(value).scheme != "s3" or not _parts(value).netloc):
            raise ValueError("write a bucket, and a folder if you like, such as s3://calls/agent")
        return value.rstrip("/")

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_is_signed(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        secret, url = value.get_secret_value().strip(), info.data.get("webhook_url")
        such = "write whsec_ and what `openssl rand -base64 32` prints"
        if not secret and url is not None and url.get_secret_value():
            raise ValueError(f"AGENT_WEBHOOK_URL needs it, since reports are signed: {such}")
        if secret and not _is_webhook_secret(secret):
            raise ValueError(f"it is none of standardwebhooks.com: {such}")
        return SecretStr(secret)

    @field_validator("llm_url", "stt_url", "tts_url")
    @classmethod
    def _server_is_an_address(cls, value: str) -> str:
        if value and not (_parts(value).scheme in {"http", "https"} and _parts(value).netloc):
            raise ValueError("write an address such as http://localhost:8000/v1")
        return value.rstrip("/")

    @field_validator("realtime_url")
    @classmethod
    def _realtime_url_is_one(cls, value: str) -> str:
        if value and not (
            _parts(value).scheme in {"http", "https", "ws", "wss"} and _parts(value).netloc
        ):
            raise ValueError("write an address such as https://api.openai.com/v1")
        return value.rstrip("/")

    @field_validator("calls_to")
    @classmethod
    def _prefixes_are_international(cls, value: str) -> str:
        for entry in value.split(","):
            if entry.strip() and not re.fullmatch(r"\+[0-9]*", entry.strip()):
                raise ValueError(
                    f"{entry.strip()!r} begins no international number: write prefixes such as"
                    " +49,+431; + allows every country"
                )
        return value

    @field_validator("memory_url")
    @classmethod
    def _memory_is_known(cls, value: str) -> str:
        schemes = {"redis", "rediss", "scratch"}
        if value not in {"sqlite", "none"} and _parts(value).scheme not in schemes:
            raise ValueError("write sqlite, none, or an address such as redis://localhost:6379/0")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, the environment (`.env.local` is in it), then defaults.toml."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def data(self) -> Path:
        """Where the agent writes, absolute."""
        return self.data_dir if self.data_dir.is_absolute() else self.home / self.data_dir

    @property
    def documents(self) -> Path:
        """The folder of documents that are looked up."""
        return self.home / "knowledge"

    @property
    def memory(self) -> str:
        """Which memory module: none, sqlite, redis or scratch."""
        if self.memory_url in {"sqlite", "none"}:
            return self.memory_url
        return "scratch" if _parts(self.memory_url).scheme == "scratch" else "redis"

    @property
    def voice(self) -> str:
        """The voice that was chosen; empty for one of another provider than the default voice's."""
        chosen = "tts_voice" in self.model_fields_set or self.tts_model.startswith("cartesia/")
        return self.tts_voice if chosen else ""

    @property
    def server_is_here(self) -> bool:
        """Whether the LiveKit server is on this machine, so that no proxy leads to it."""
        return _parts(self.livekit_url).hostname in LOOPBACK

    @property
    def keyless(self) -> bool:
        """Whether the keys that LiveKit Inference needs are missing."""
        return not (self.livekit_api_key and self.livekit_api_secret.get_secret_value())


def _is_webhook_secret(secret: str) -> bool:
    try:
        return 24 <= len(b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False


def _parts(address: str) -> SplitResult:
    """Of an address; empty if it is none, because the error would quote it, and its password."""
    try:
        return urlsplit(address)
    except ValueError:
        return SplitResult("", "", "", "", "")


def export_env_file(home: Path) -> None:
    """Put `.env.local` into the environment, which wins; `$` in a value is a dollar sign.

    The SDK and its plugins read the environment, also in job processes.
    """
    file = home / ".env.local"
    try:
        # utf-8-sig: an editor on Windows may have begun the file with a byte order mark
        load_dotenv(file, override=False, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            [f"{file} cannot be read ({error}): write it again, as UTF-8 text"]
        ) from error
    # a space or a line's end that was copied with it: HTTP clients refuse such a key, and quote it
    for name, value in os.environ.items():
        if name.endswith("_API_KEY") and not name.startswith("LIVEKIT_"):
            os.environ[name] = value.strip()


def settings_problems(error: ValidationError) -> list[str]:
    """One line a problem, named as the environment names it."""
    names, lines = variables(), []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{names.get(field, field)}: {message}")
    return lines


def variables() -> dict[str, str]:
    """The settings, and what each is called in the environment."""
    fields = Settings.model_fields.items()
    return {name: field.alias or f"AGENT_{name.upper()}" for name, field in fields}


def unknown_variables() -> dict[str, str]:
    """What looks like a setting in the environment and is none, and the setting it resembles."""
    known = set(variables().values())
    unknown = {name for name in os.environ if name.startswith("AGENT_")} - known
    return {
        name: "".join(difflib.get_close_matches(name, known, n=1))
        for name in sorted(unknown)
        if not name.startswith("AGENT_TEST_")
    }


def traces_are_exported() -> bool:
    """Whether OpenTelemetry's own variables say where traces go."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def inference_has_own_keys() -> bool:
    """Whether the SDK's own variables say which LiveKit Cloud project LiveKit Inference is of."""
    return "LIVEKIT_INFERENCE_API_KEY" in os.environ


def openai_key() -> str:
    """The key in OpenAI's own variable, which its clients read; empty if there is none."""
    return os.environ.get("OPENAI_API_KEY", "")


def words_are_asked_for() -> bool:
    """Whether the SDK's own variable asks for the conversation, in traces and logs."""
    return os.environ.get("LIVEKIT_TELEMETRY_ALLOW_PII", "").strip().lower() in {"1", "true"}


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process; raises SettingsError with every problem at once."""
    export_env_file(find_home())
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(settings_problems(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            [f"{DEFAULTS} is not TOML ({error}): correct it, or delete it for the defaults"]
        ) from error
