"""What runs for every request, job or picture: `pytest benchmarks/`."""

from __future__ import annotations

import io
import time
from importlib.resources import files
from uuid import UUID, uuid4

import numpy as np
import orjson
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from aiworker.analyses.registry import ANALYSES, checked_input, read_input
from aiworker.analyses.sofia_image import SeenMeal
from aiworker.domain.errors import ProviderTimeout
from aiworker.domain.job import Lease
from aiworker.domain.outcome import Completed, outcome_of_error
from aiworker.domain.retry import RetryPolicy
from aiworker.gateway.auth import Authenticator, user_token
from aiworker.inference.child.decode import decode
from aiworker.inference.messages import DetectBatch, ItemDetected
from aiworker.inference.messages import decode as decode_message
from aiworker.inference.messages import encode as encode_message
from aiworker.llm.structured import parse_answer
from aiworker.nutrition.matching import match_food
from aiworker.nutrition.meal_text import parse_meal
from aiworker.queue.rows import outcome_columns
from aiworker.telemetry.metrics import Metrics

# CPU time: what others on the machine take is not the function's.
pytestmark = pytest.mark.benchmark(timer=time.process_time)

# Past its cache: a name that has not been seen.
_MATCH = getattr(match_food, "__wrapped__", match_food)
PHOTO = (files("aiworker.cli") / "data" / "fruits.jpg").read_bytes()
FOODS = [{"name": f"arroz tipo {n}", "grams": 100 + n, "confidence": 0.9} for n in range(8)]
ANSWER = orjson.dumps({"foods": FOODS, "meal_type": "almoco", "notes": ""}).decode()
RESULT = {"foods": FOODS, "totals": {"kcal": 512.3}, "success": True}
BOXES = tuple((49, 0.9, 1.0 * n, 2.0, 30.0, 40.0) for n in range(20))


def test_decode_a_photo(benchmark: BenchmarkFixture) -> None:
    benchmark(decode, PHOTO, 50_000_000)


def test_decode_12_megapixels(benchmark: BenchmarkFixture) -> None:
    buffer = io.BytesIO()
    rows = np.linspace(0, 255, 3000, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(rows, (3000, 4000, 3)).copy()).save(buffer, "JPEG", quality=85)
    benchmark(decode, buffer.getvalue(), 50_000_000)


def test_frame_a_batch_of_pictures(benchmark: BenchmarkFixture) -> None:
    batch = DetectBatch(1, tuple(range(8)), (PHOTO,) * 8)
    benchmark(lambda: decode_message(b"".join(encode_message(batch))[4:]))


def test_frame_detections(benchmark: BenchmarkFixture) -> None:
    found = ItemDetected(1, 640, 480, BOXES, 31.0, 4)
    benchmark(lambda: decode_message(b"".join(encode_message(found))[4:]))


def test_read_a_models_answer(benchmark: BenchmarkFixture) -> None:
    benchmark(parse_answer, SeenMeal, f"```json\n{ANSWER}\n```")


def test_match_a_known_food(benchmark: BenchmarkFixture) -> None:
    benchmark(_MATCH, "peito de frango grelhado")


def test_match_a_misspelt_food(benchmark: BenchmarkFixture) -> None:
    benchmark(_MATCH, "feijao carioqinha cosido")


def test_read_a_meal_in_words(benchmark: BenchmarkFixture) -> None:
    benchmark(parse_meal, "comi 200 g de arroz, duas conchas de feijão, um bife e um copo de suco de laranja")


def test_check_an_input(benchmark: BenchmarkFixture) -> None:
    body = {"message": "bom dia", "userId": str(uuid4()), "history": [{"role": "user", "content": "oi"}] * 10}
    benchmark(checked_input, ANALYSES["unified_assistant"], body)


def test_read_an_input(benchmark: BenchmarkFixture) -> None:
    body = {"message": "bom dia", "userId": str(uuid4()), "history": [{"role": "user", "content": "oi"}] * 10}
    benchmark(read_input, ANALYSES["unified_assistant"], orjson.dumps(body).decode())


def test_check_a_token(benchmark: BenchmarkFixture) -> None:
    secret = "a-secret-of-at-least-thirty-two-bytes"
    headers = {"Authorization": f"Bearer {user_token(secret, UUID(int=1), int(time.time()) + 600)}"}
    benchmark(Authenticator(jwt_secret=secret, service_key="key").principal, headers)


def test_columns_of_50_outcomes(benchmark: BenchmarkFixture) -> None:
    outcomes = [(Lease(uuid4(), uuid4()), Completed(RESULT, 3600.0)) for _ in range(50)]
    benchmark(outcome_columns, outcomes)


def test_decide_a_retry(benchmark: BenchmarkFixture) -> None:
    error = ProviderTimeout("late", provider="gemini")
    benchmark(lambda: outcome_of_error(error, attempt=1, max_attempts=3, policy=RetryPolicy(), random=0.5))


def test_observe_a_time(benchmark: BenchmarkFixture) -> None:
    metrics = Metrics()
    benchmark(metrics.job_seconds.observe, 0.42, "sofia_image")


def test_render_the_metrics(benchmark: BenchmarkFixture) -> None:
    metrics = Metrics()
    for name in ANALYSES:
        metrics.jobs.labels(name, "completed").inc()
        metrics.job_seconds.observe(0.4, name)
    benchmark(metrics.render)
