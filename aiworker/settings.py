"""Environment to frozen values, read once and checked. Secrets are masked in every repr.

Times are in the unit their name ends with. Unknown variables are ignored; a bad value stops the start with a sentence
that names the variable.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from yarl import URL

from aiworker.domain.errors import ConfigurationError


def _default_worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """Every variable that aiworker reads, upper-case in the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    database_url: SecretStr | None = Field(
        None, description="PostgreSQL 15 or newer; unset, `up` and `demo` start their own"
    )
    database_timeout_s: float = Field(5.0, gt=0, le=120, description="limit of every database call")
    database_pooler: Literal["auto", "transaction", "none"] = Field(
        "auto", description="whether DATABASE_URL goes through a transaction pooler; auto finds out"
    )

    host: str = Field("127.0.0.1", description="address the gateway listens on; beyond loopback it needs a secret")
    port: int = Field(8080, ge=0, le=65535, description="the gateway's port; 0 takes a free one")
    worker_host: str = Field("127.0.0.1", description="address the worker's health endpoint listens on")
    worker_port: int = Field(3001, ge=0, le=65535, description="the worker's health port; 0 takes a free one")
    health_token: SecretStr | None = Field(
        None, description="bearer token that /health/detailed and /metrics ask for; unset, they are open"
    )
    max_body_mb: float = Field(
        17.0, gt=0, le=128, description="largest request body; a picture in it is a third longer"
    )
    supabase_jwt_secret: SecretStr | None = Field(None, description="HS256 secret of the Supabase project")
    supabase_service_role_key: SecretStr | None = Field(None, description="the key that may name any user")

    worker_id: str = Field(default_factory=_default_worker_id, description="name of this worker in rows and logs")
    worker_concurrency: int = Field(5, ge=1, le=256, description="jobs run at the same time")
    worker_poll_interval_ms: int = Field(1000, ge=10, le=60_000, description="fallback when notifications are lost")
    worker_max_retries: int = Field(3, ge=1, le=20, description="attempts before a job has failed")
    worker_stuck_job_timeout_ms: int = Field(300_000, ge=1000, description="longest that one attempt may run")
    worker_lease_ms: int = Field(6000, ge=1000, le=600_000, description="a silent worker's jobs are free after this")
    worker_drain_timeout_ms: int = Field(
        20_000, ge=0, description="on SIGTERM, how long running jobs may go on before they are put back"
    )
    retention_days: float = Field(
        30.0, ge=0, le=100_000, description="jobs that ended longer ago are removed; 0 keeps them all"
    )
    max_active_jobs_per_user: int = Field(10, ge=1, le=1_000_000, description="the next one gets 429")

    yolo_model: str = Field("yolov8n", description="a path, or a name that `aiworker models list` shows")
    models_dir: Path = Field(Path("models"), description="where weights are kept")
    yolo_confidence: float = Field(0.35, gt=0, lt=1, description="boxes below this are dropped")
    yolo_more_models: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="further models that jobs may ask for by name (`plates=/weights/plates-seg.pt,large=yolov8s`)",
    )
    yolo_more_models_mb: int = Field(
        1500,
        ge=450,
        description="memory for all further models, 1500 or more on a GPU; the one unused longest makes room",
    )
    memory_budget_mb: int = Field(
        0, ge=0, description="memory for the worker and its children; 0 takes what is there, 24 GB at most"
    )
    inference_processes: int = Field(
        0, ge=0, le=64, description="children that hold the model; 0 lets `aiworker placement` decide"
    )
    inference_threads: int = Field(0, ge=0, le=128, description="threads a child may use; 0 shares the cores out")
    inference_max_batch: int = Field(8, ge=1, le=64, description="images that go through the model together")
    inference_engine: Literal["auto", "torch", "torch-graph", "openvino", "onnx", "tensorrt"] = Field(
        "auto", description="auto measures once what is fastest here (`aiworker models profile`)"
    )
    inference_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 lets OpenVINO use it where the CPU has it: faster, confidences move by up to 0.05"
    )
    inference_device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")

    ollama_url: str | None = Field(None, description="for example http://ollama:11434; unset, Ollama is not asked")
    ollama_model: str = Field("llama3.2:3b", description="text model")
    ollama_vision_model: str | None = Field(None, description="vision model; unset, photos do not go to Ollama")
    ollama_num_ctx: int = Field(4096, ge=512, description="constant, since a change reloads the model")
    ollama_slots: int = Field(1, ge=1, le=64, description="calls to Ollama at the same time (OLLAMA_NUM_PARALLEL)")
    ollama_max_waiting: int = Field(64, ge=1, le=10_000, description="calls in line for Ollama; more go elsewhere")
    gemini_api_key: SecretStr | None = Field(None, description="unset, Gemini is not asked")
    gemini_model: str = Field("gemini-3.5-flash-lite", description="model for text and vision")
    gemini_url: str = Field("https://generativelanguage.googleapis.com", description="base address of the Gemini API")
    gemini_slots: int = Field(8, ge=1, le=256, description="calls to Gemini at the same time")
    gemini_rpm: int | None = Field(None, ge=2, description="requests a minute that your quota allows; unset, no limit")
    gemini_tpm: int | None = Field(None, ge=1000, description="tokens a minute that your quota allows; unset, no limit")
    gemini_usd_per_day: float | None = Field(
        None, gt=0, description="list price at which Gemini is left alone until midnight in California"
    )
    gemini_usd_per_job: float | None = Field(
        None, gt=0, description="list price after which one attempt of a job asks Gemini no more"
    )
    gemini_price: Annotated[tuple[float, float] | None, NoDecode] = Field(
        None, description="dollars per million tokens of prompt and of answer (0.3,2.5); unset, the list price"
    )

    local_only: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="types of job (comma-separated, or all) whose prompts never leave for Gemini"
    )

    media_allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="hosts (host or host:port, comma-separated) that may have a private address"
    )
    media_max_mb: float = Field(12.0, gt=0, le=64, description="largest picture, in bytes")
    media_max_megapixels: float = Field(50.0, gt=0, le=500, description="largest picture, in pixels")
    media_timeout_s: float = Field(10.0, gt=0, le=120, description="limit of one download")

    enable_cache: bool = Field(True, description="share results of identical requests")
    cache_ttl_hours: float = Field(24.0, gt=0, le=100_000, description="how long a result may be shared")
    traces: Literal["off", "otlp"] = Field(
        "off", description="otlp sends spans by OpenTelemetry, to OTEL_EXPORTER_OTLP_ENDPOINT; needs aiworker[otel]"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("media_allowed_hosts", "local_only", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("yolo_more_models", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not (name.strip() and model.strip()) for name, _, model in pairs):
            raise ValueError("must be pairs of name=weights, separated by commas")
        return {name.strip(): model.strip() for name, _, model in pairs}

    @field_validator("gemini_price", mode="before")
    @classmethod
    def _two_prices(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("gemini_price")
    @classmethod
    def _no_gifts(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and min(value) < 0:
            raise ValueError("must not be below 0")
        return value

    @field_validator("ollama_url", "gemini_url")
    @classmethod
    def _plain_http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        if value is not None and not _names_a_host(value):
            raise ValueError("must name a host, and a port only from 0 to 65535")
        return value.rstrip("/") if value else value

    @field_validator("gemini_model")
    @classmethod
    def _as_google_lists_it(cls, value: str) -> str:
        return value.removeprefix("models/")

    @field_validator("gemini_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip().isprintable():
            # Otherwise each call would end by a mistake of ours, and Ollama would not be asked either.
            raise ValueError("must be one line without control characters")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()


def _names_a_host(url: str) -> bool:
    try:
        # As the HTTP client reads it, and later looks it up: an empty label or one of 64 letters is no name.
        return bool((URL(url).raw_host or "").encode("idna"))
    except ValueError:
        return False


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, `overrides` first. Raises ConfigurationError naming each bad variable."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"set these variables right: {problems}") from None
