"""Environment to settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from aiworker.cli.wiring import gemini_price, local_only_types
from aiworker.domain.errors import ConfigurationError
from aiworker.llm.gemini_models import Price
from aiworker.settings import load_settings


def test_defaults_need_nothing() -> None:
    settings = load_settings()
    assert settings.port == 8080
    assert settings.worker_concurrency == 5
    assert settings.database_url is None


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "7")
    monkeypatch.setenv("MEDIA_ALLOWED_HOSTS", "minio, Files.Example:9000 ,")
    monkeypatch.setenv("OLLAMA_URL", "http://ollama:11434/")
    settings = load_settings()
    assert settings.worker_concurrency == 7
    assert settings.media_allowed_hosts == frozenset({"minio", "files.example:9000"})
    assert settings.ollama_url == "http://ollama:11434"


def test_a_model_may_be_named_as_google_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_MODEL", "models/gemini-2.5-flash")
    assert load_settings().gemini_model == "gemini-2.5-flash"


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_URL", "")
    monkeypatch.setenv("PORT", "")
    settings = load_settings()
    assert settings.ollama_url is None
    assert settings.port == 8080


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("WORKER_CONCURRENCY", "none"),
        ("LOG_LEVEL", "LOUD"),
        ("INFERENCE_DEVICE", "gpu"),
        ("INFERENCE_DEVICE", "cuda:x"),
        ("OLLAMA_URL", "ollama:11434"),
        ("OLLAMA_URL", "http://"),
        ("OLLAMA_URL", "http://[bad"),
        ("OLLAMA_URL", "http://ollama..internal:11434"),
        ("OLLAMA_URL", f"http://{64 * 'o'}:11434"),
        ("OLLAMA_URL", "http://olla\u200bma:11434"),
        ("GEMINI_URL", "https://gemini:99999"),
        ("WORKER_LEASE_MS", "0"),
        ("RETENTION_DAYS", "99999999"),
        ("CACHE_TTL_HOURS", "inf"),
        ("MAX_ACTIVE_JOBS_PER_USER", "9999999999"),
        ("GEMINI_PRICE", "0.5"),
        ("GEMINI_PRICE", "-1,2"),
        ("GEMINI_API_KEY", "AIza-one\nAIza-two"),
    ],
)
def test_a_bad_value_is_named_and_not_quoted_where_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as caught:
        load_settings()
    assert "AIza" not in str(caught.value)


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "GEMINI_API_KEY", "SUPABASE_JWT_SECRET", "SUPABASE_SERVICE_ROLE_KEY"):
        monkeypatch.setenv(name, "s3cret-value")
    assert "s3cret-value" not in repr(load_settings())


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


def test_types_that_stay_on_this_server_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_ONLY", "sofia_text, all")
    assert local_only_types(load_settings()) == frozenset({"sofia_text", "all"})
    monkeypatch.setenv("LOCAL_ONLY", "sofia_txt")
    with pytest.raises(ConfigurationError, match=r"sofia_txt.*there are.*sofia_text"):
        local_only_types(load_settings())


def test_a_budget_needs_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gemini_price(load_settings(gemini_usd_per_day=1.0)) == Price(0.30, 2.50)
    assert gemini_price(load_settings(gemini_model="gemini-9")) is None
    with pytest.raises(ConfigurationError, match="GEMINI_PRICE"):
        gemini_price(load_settings(gemini_model="gemini-9", gemini_usd_per_day=1.0))
    with pytest.raises(ConfigurationError, match="GEMINI_USD_PER_JOB"):
        gemini_price(load_settings(gemini_model="gemini-9", gemini_usd_per_job=0.01))
    monkeypatch.setenv("GEMINI_PRICE", "0.5, 4")
    assert gemini_price(load_settings(gemini_model="gemini-9", gemini_usd_per_day=1.0)) == Price(0.5, 4.0)


def test_further_models_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().yolo_more_models == {}
    monkeypatch.setenv("YOLO_MORE_MODELS", "plates = /weights/p=1.pt, large=yolov8s,")
    assert load_settings().yolo_more_models == {"plates": "/weights/p=1.pt", "large": "yolov8s"}
    for wrong in ("plates", "=yolov8s", "plates="):
        monkeypatch.setenv("YOLO_MORE_MODELS", wrong)
        with pytest.raises(ConfigurationError, match=r"YOLO_MORE_MODELS.*name=weights"):
            load_settings()


def test_the_largest_picture_fits_into_a_body() -> None:
    """As a data URL, with room for the rest of the request."""
    settings = load_settings()
    assert settings.max_body_mb > settings.media_max_mb * 4 / 3 + 0.5
