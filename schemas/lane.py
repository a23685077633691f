"""Teachers as a job spec names them: one (provider, account, model) with its limits and price."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.money import Price
from schemas.prices import listed_price


class Provider(NamedTuple):
    """What a spec may leave out of a lane of a provider itself: its address and the usual place of its key. dialects:
    what it speaks, the first where `api` names none of them; base_ends: whether addresses end in /v1."""

    url: str
    api_key: str
    dialects: tuple[str, ...]
    base_ends: bool


PROVIDERS = {
    "openai": Provider("https://api.openai.com/v1", "env:OPENAI_API_KEY", ("chat", "responses"), True),
    "anthropic": Provider("https://api.anthropic.com", "env:ANTHROPIC_API_KEY", ("messages",), False),
}
PATHS = re.compile(r"(/v1)?(/chat/completions|/completions|/responses|/messages)$")
LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*\.?")
CONTROL = re.compile(r"%([01][0-9a-f]|7f)", re.IGNORECASE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    """Whether `host` is an address, or a name as DNS takes it (RFC 1123: labels of at most 63 characters)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return HOST.fullmatch(host) is not None
    return True


class Strict(BaseModel):
    """Anything read from a user: unknown keys are refused, `true` is no number, values are not changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class Limits(Strict):
    """Limits of the account. A number is used from the first second, with at most a second's worth as a burst; null is
    learned from the server's headers, and without those the calls in flight adapt to what it takes."""

    rpm: Annotated[int, Field(gt=0, le=10**12)] | None = Field(None, description="requests a minute")
    tpm: Annotated[int, Field(gt=0, le=10**12)] | None = Field(None, description="tokens a minute, input and output")
    input_tpm: Annotated[int, Field(gt=0, le=10**12)] | None = Field(None, description="input tokens a minute")
    output_tpm: Annotated[int, Field(gt=0, le=10**12)] | None = Field(None, description="output tokens a minute")
    concurrency: Annotated[int, Field(gt=0, le=10**12)] | None = Field(
        None, description="calls in flight; null adapts to what the teacher takes"
    )

    @property
    def rates(self) -> dict[str, float]:
        """Limits a minute that are known, by `requests`, `tokens`, `input`, `output`."""
        all_ = {"requests": self.rpm, "tokens": self.tpm, "input": self.input_tpm, "output": self.output_tpm}
        return {name: float(value) for name, value in all_.items() if value is not None}


class PriceSpec(Strict):
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0, le=1_000_000)] = Field(description="USD per million input tokens")
    output: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        description="USD per million output tokens, reasoning among them"
    )


def check_base_url(url: str) -> str:
    """Refuse what would leak a key or a prompt: credentials in the URL, plain http beyond loopback."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("must be an http(s) URL with a port below 65536") from None
    if parts.scheme not in ("http", "https") or not _is_host(parts.hostname or ""):
        raise ValueError("must be an http(s) URL")
    if (
        port == 0
        or ";" in url
        or CONTROL.search(url)
        or parts.query
        or parts.fragment
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError("must be an http(s) URL of a server and a path, nothing more")
    if parts.username or parts.password:
        raise ValueError("must not hold credentials; use api_key: env:NAME")
    local = parts.hostname == "localhost" or _is_loopback(parts.hostname or "")
    if parts.scheme == "http" and not local:
        raise ValueError("plain http is allowed on loopback only; use https")
    return url.rstrip("/")


class Teacher(Strict):
    """One lane."""

    provider: Literal["openai", "anthropic", "embedded", "recorded", "scripted"] = Field(
        description="openai and anthropic: these or any compatible server; embedded: a local model; recorded: answers "
        "that are there already; scripted: made up"
    )
    model: str = Field("", description="the model's name; for `embedded` smollm2-135m or the path of a .gguf file")
    path: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="recorded: jsonl, jsonl.gz, json, csv or parquet (file, glob, directory), or a run directory. Rows "
        "with the same prompt have answers of their own unless other teachers stand beside it: then they share one",
    )
    fields: dict[Literal["id", "raw"], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="recorded: the columns of the row's id and of the answer's text"
    )
    api: Literal["chat", "responses"] = Field("chat", description="openai only")
    base_url: str | None = Field(
        None, description="any compatible server, ending in /v1 for openai, not for anthropic; null: the provider's own"
    )
    api_key: str | None = Field(None, description="env:NAME or file:PATH, never the key itself")
    limits: Limits = Limits()
    price: PriceSpec | None = Field(None, description="null: from the table that ships, if it knows the model")
    free: bool = Field(False, description="a teacher of one's own: nothing is paid")
    lane: Literal["online", "batch"] = Field("online", description="batch is not built yet")
    timeout_s: Annotated[float, Field(gt=0, le=604_800)] = Field(120.0, description="seconds for one call")

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        return None if value is None else check_base_url(value)

    @field_validator("api_key")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"env:[A-Za-z_]\w*|file:.+", value):
            # The value may be a key, so neither this message nor the one built from it repeats it.
            raise ValueError("must be env:NAME or file:PATH, never the key itself")
        return value

    @model_validator(mode="before")
    @classmethod
    def _own_address(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        url, own = values.get("base_url"), PROVIDERS.get(str(values.get("provider")))
        if own is not None and isinstance(url, str) and url.rstrip("/").lower() == own.url:
            return {**values, "base_url": None}  # written out, it is the provider all the same
        return values

    @model_validator(mode="after")
    def _whole(self) -> "Teacher":
        own = PROVIDERS.get(self.provider)
        if self.api != "chat" and (own is None or self.api not in own.dialects):
            raise ValueError(f"api {self.api!r} goes with provider openai")
        if self.lane != "online":
            raise ValueError(f"lane {self.lane!r} is not built yet; online is")
        if (self.path is None) == (self.provider == "recorded"):
            raise ValueError("provider recorded and path: FILE or RUN go together")
        if self.fields and self.path is None:
            raise ValueError("fields go with provider recorded")
        if (own is not None or self.provider == "embedded") and not self.model:
            raise ValueError("model is required")
        if own is not None and not own.base_ends and self.base_url is not None and self.base_url.endswith("/v1"):
            raise ValueError(f"base_url of an {self.provider} lane does not end in /v1; the package adds it")
        if own is not None and (end := PATHS.search(self.base_url or "")):
            added = end[2] if own.base_ends else end[0]
            raise ValueError(f"base_url ends before {added}; the package adds it")
        if own is not None and self._price is None and not self.free:
            where = "" if self.base_url is None else f" at {self.base_url}"
            raise ValueError(
                f"price of {self.model!r}{where} is unknown; give price: {{input: USD, output: USD}} per million "
                "tokens, or free: true for a teacher of one's own"
            )
        return self

    @property
    def name(self) -> str:
        """What the `teacher` column and the report call this lane, and the model part of the call key."""
        if self.provider == "embedded" and self.model.endswith(".gguf"):
            return f"embedded/{self.model.rpartition('/')[2].removesuffix('.gguf')}"
        return f"{self.provider}/{self.model}" if self.model else self.provider

    @property
    def _price(self) -> Price | None:
        """The spec's price, else the table's where the lane is the provider itself."""
        if self.price is not None:
            return Price(self.price.input, self.price.output)
        return listed_price(self.provider, self.model) if self.base_url is None else None

    @property
    def rates(self) -> Price:
        """The price in force; zero for teachers of one's own."""
        return Price(0.0, 0.0) if self.free else self._price or Price(0.0, 0.0)


def lane_names(teachers: Sequence[Teacher]) -> list[str]:
    """What a user tells lanes by: the name, with the place in the spec where several share it."""
    names = [teacher.name for teacher in teachers]
    return [name if names.count(name) == 1 else f"{name} (teachers.{n})" for n, name in enumerate(names)]
