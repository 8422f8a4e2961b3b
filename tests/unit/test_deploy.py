"""What a deployment is made of fits together: images, compose file, alert rules, dashboard."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiworker.cli import embedded_postgres
from aiworker.settings import Settings
from aiworker.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = (ROOT / "compose.yaml").read_text()
IMAGES = ("Dockerfile.cpu", "Dockerfile.cuda")
_SIZES = {"m": 1, "g": 1024}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE)
    return loaded


def metric_names() -> set[str]:
    """Every name that a sample of ours can have."""
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\baiworker_[a-z_]+", query))


def test_memory_limits_leave_something_of_24_gb() -> None:
    limits = {name: service["mem_limit"] for name, service in compose()["services"].items()}
    assert limits.keys() == compose()["services"].keys()
    total = sum(int(size[:-1]) * _SIZES[size[-1]] for size in limits.values())
    assert 20 * 1024 < total <= 24 * 1024


def test_every_variable_of_the_compose_file_is_one_that_we_read() -> None:
    ours = {name.upper() for name in Settings.model_fields} | {"HEALTH_URL"}
    for name in ("gateway", "worker", "weights", "migrate"):
        assert set(compose()["services"][name]["environment"]) <= ours, name


def test_what_is_in_env_reaches_our_services_but_not_the_other_ones_secrets() -> None:
    """`LOCAL_ONLY` in .env must not be lost on its way: it keeps analyses off Gemini."""
    secrets = {
        "gateway": {"GEMINI_API_KEY"},
        "worker": {"SUPABASE_JWT_SECRET", "SUPABASE_SERVICE_ROLE_KEY"},
        "migrate": {"GEMINI_API_KEY", "SUPABASE_JWT_SECRET", "SUPABASE_SERVICE_ROLE_KEY"},
    }
    for name, others in secrets.items():
        service = compose()["services"][name]
        assert service["env_file"] == [{"path": ".env", "required": False}], name
        assert {key for key, value in service["environment"].items() if value == ""} == others, name
        assert service["environment"]["DATABASE_URL"].startswith("${DATABASE_URL:-"), name


def test_a_port_in_env_does_not_move_what_health_checks_and_prometheus_ask() -> None:
    scraped = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    for name, variable, host in (("gateway", "PORT", "HOST"), ("worker", "WORKER_PORT", "WORKER_HOST")):
        environment = compose()["services"][name]["environment"]
        assert f"{name}:{environment[variable]}" in scraped
        assert environment[host] == "0.0.0.0"
    worker = compose()["services"]["worker"]
    assert worker["environment"]["HOST"] == "127.0.0.1", "or doctor misses the gateway's secrets there"
    assert worker["ports"] == ["127.0.0.1:${WORKER_HEALTH_PORT:-3001}:3001"], "the docs ask it on the server"
    gateway = compose()["services"]["gateway"]
    port = gateway["environment"]["PORT"]
    assert f":{port}/" in gateway["environment"]["HEALTH_URL"]
    assert gateway["ports"][0].endswith(f":{port}")


def test_a_health_token_can_be_given_to_every_job_that_prometheus_scrapes() -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    jobs = yaml.safe_load(text.replace("# authorization:", "authorization:"))["scrape_configs"]
    assert {job["job_name"] for job in jobs if "authorization" in job} == {"aiworker-worker", "aiworker-gateway"}


def test_postgres_logs_no_more_of_what_users_typed_than_the_embedded_one() -> None:
    kept_out = {f"-c{name}={value}" for name, value in embedded_postgres._SETTINGS.items() if name.startswith("log_")}
    assert len(kept_out) == 2
    assert kept_out <= set(compose()["services"]["postgres"]["command"])


def test_every_variable_that_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", COMPOSE))
    example = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    assert asked <= example


def test_services_of_ours_are_read_only_and_without_privileges() -> None:
    for name in ("gateway", "worker", "weights", "migrate"):
        service = compose()["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_a_rollback_lasts_and_the_next_update_does_not_keep_the_bad_image_as_the_one_to_go_back_to() -> None:
    """What Compose starts by itself, and what an update tags as `previous`, is the image's usual name."""
    usual = re.search(r"image: \$\{AIWORKER_IMAGE:-(\S+)\}", COMPOSE)
    assert usual
    docs = ROOT / "docs"
    assert f"docker tag {usual[1]} aiworker:previous" in (docs / "deployment.md").read_text()
    assert f"docker tag aiworker:previous {usual[1]}" in (docs / "rollback.md").read_text()


def test_a_worker_on_easypanel_is_not_told_to_have_the_gateways_secrets() -> None:
    """The images listen on 0.0.0.0, for which `aiworker doctor` wants secrets unless HOST says that no gateway runs."""
    guide = (ROOT / "docs" / "deployment.md").read_text()
    worker = re.search(r"name `worker`.*?Memory limit", guide, re.DOTALL)
    assert worker
    assert f"`HOST={compose()['services']['worker']['environment']['HOST']}`" in worker[0]


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_pinned_not_root_and_checked(image: str) -> None:
    text = (ROOT / image).read_text()
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+-\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert re.search(r'^ENTRYPOINT \["tini", "--", "aiworker"\]$', text, re.MULTILINE)
    torch = re.search(r"^ARG TORCH=(\S+)", text, re.MULTILINE)
    setup = re.search(r"^TORCH=(\S+)", (ROOT / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    assert torch
    assert setup
    assert torch[1] == setup[1]


def test_both_images_have_the_same_base_and_pip_to_get_weights_with() -> None:
    bases = {re.search(r"^ARG BASE=(\S+)", (ROOT / image).read_text(), re.MULTILINE)[1] for image in IMAGES}  # type: ignore[index]
    assert len(bases) == 1
    for image in IMAGES:
        assert not re.search(r"uninstall[^&]*\bpip\b", (ROOT / image).read_text())


def test_images_of_others_are_pinned_by_version_and_digest() -> None:
    foreign = {name: service["image"] for name, service in compose()["services"].items() if "build" not in service}
    assert foreign.keys() == {"postgres", "ollama", "prometheus"}
    for name, image in foreign.items():
        assert re.fullmatch(r"\S+:v?\d+\.\d+\S*@sha256:[0-9a-f]{64}", image), name


def test_what_images_leave_out_is_in_the_constraints() -> None:
    left_out = (DEPLOY / "image" / "not-in-images.txt").read_text().split()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert set(left_out) <= pinned.keys()
    needed = {"aiohttp", "asyncpg", "click", "ultralytics", "prometheus_client"}
    assert not needed & set(left_out)


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), str(ROOT / image)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_health_check_says_no_when_nobody_answers() -> None:
    command = [sys.executable, str(DEPLOY / "image" / "healthcheck.py")]
    done = subprocess.run(
        command, env={"HEALTH_URL": "http://127.0.0.1:1/health"}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stdout


def test_the_health_check_asks_no_proxy() -> None:
    command = [sys.executable, str(DEPLOY / "image" / "healthcheck.py")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/health"
        environment = {"HEALTH_URL": url, "http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as check:
            server.settimeout(10)
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert check.wait(10) == 0


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (Debian: prometheus)")
    for command in (("check", "config", "prometheus.yaml"), ("test", "rules", "rules.test.yaml")):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"][0][
        "rules"
    ]
    return found


def test_alerts_and_panels_ask_for_metrics_that_exist() -> None:
    names = metric_names()
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    queries = [rule["expr"] for rule in rules()] + [each["expr"] for panel in panels for each in panel["targets"]]
    assert len(queries) > 25
    for query in queries:
        assert metrics_in(query) or re.search(r"\bup\{", query), query
        assert metrics_in(query) <= names, metrics_in(query) - names


def test_every_alert_is_tested_in_both_ways_and_explained() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules.test.yaml").read_text())["tests"]
    expected = [each for test in tests for each in test["alert_rule_test"]]
    quiet, loud = (
        {each["alertname"] for each in expected if bool(each["exp_alerts"]) is fires} for fires in (False, True)
    )
    alerts = {rule["alert"] for rule in rules()}
    assert quiet == loud == alerts
    troubleshooting = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert {name for name in alerts if f"### {name}\n" not in troubleshooting} == set()


def test_the_dashboard_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "build_dashboard.py"))
    assert (DEPLOY / "grafana" / "dashboard.json").read_text() == script["text"]()
