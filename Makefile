# PYTHON=python3.12 picks the interpreter, CUDA=1 the torch for NVIDIA GPUs, PHOTO=file the picture of the demo,
# BENCH what the gate is told (BENCH=--quick).
PYTHON ?= python3
CUDA ?=
PHOTO ?=
BENCH ?=
BIN := .venv/bin
export PYTHON CUDA

.DEFAULT_GOAL := help
.PHONY: help setup demo up test bench chaos lint format clean

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

setup: ## make .venv with everything in it
	@scripts/setup.sh

demo: setup ## a photo goes in, an answer comes out (PHOTO=file takes yours)
	@$(BIN)/python -m aiworker.cli demo $(if $(PHOTO),--photo "$(PHOTO)")

up: setup ## gateway, worker and PostgreSQL, until Ctrl-C
	@$(BIN)/python -m aiworker.cli up

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests that wait for processes run two files at a time; those that break things run alone.
test: lint ## lint, then every test, the fast ones first
	$(BIN)/pytest -q tests/unit
	$(BIN)/pytest -q -n 2 --dist loadfile tests --ignore=tests/unit --ignore=tests/chaos
	$(BIN)/pytest -q tests/chaos

bench: setup ## the gate before a deploy: load, targets, report (BENCH=--quick is short)
	@$(BIN)/python -m aiworker.cli bench $(BENCH)

chaos: setup ## 1,000 jobs for each fault: killed processes, databases that stop, full disks
	CHAOS_JOBS=1000 $(BIN)/pytest -q tests/chaos --durations=0

format: setup ## let ruff write the code's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what can be made again; data and weights stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	find aiworker tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
