SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 8000
BATON_HOME ?= var
export PORT BATON_HOME
PY := $(VENV)/bin/python

FAULTS ?= 200
SEED ?=
PROFILE ?= lan
TRIALS ?= 20
STORAGE ?= disk,ram
LOAD ?=

.PHONY: help run test test-long check lab lab-rows bench-failover bench-properties bench-rollout lock format clean

help:  ## what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run  ## the whole product on embedded defaults: portal, broker, worker, beat, three machine agents
	@exec $(PY) manage.py runstack

test: $(VENV)/.dev  ## everything that must be true: style, types, layers, unit tests, journeys, browser
	@.ci/system-packages
	@$(MAKE) --no-print-directory check
	$(PY) -m pytest -q -n 2 --dist loadfile -m "(journey or browser) and not lab and not long" tests/journeys tests/browser tests/runtimes
	$(PY) -m pytest -q -m "journey and lab" tests/lab

test-long: $(VENV)/.dev  ## journeys that take too long for every run
	@.ci/system-packages
	$(PY) -m pytest -q -m long tests

# Three workers on two processors, for many tests wait; whole files, so that the servers of one start once.
check: $(VENV)/.dev  ## the quick half of the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy portal runtimes deployments cli manage.py
	$(PY) manage.py makemigrations --check --dry-run
	$(PY) -m pytest -q -n 3 --dist loadfile -m "not journey and not browser and not lab and not long" tests

lab: $(VENV)/.dev  ## random faults on three hosts in network namespaces (root): make lab FAULTS=200 SEED=7
	@.ci/system-packages
	@$(PY) -m tests.lab --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

lab-rows: $(VENV)/.dev  ## every row of the table "Who leads when links are cut", on the same three hosts
	@.ci/system-packages
	$(PY) -m pytest -q -m "lab and not long" tests/lab

bench-rollout: $(VENV)/.dev  ## what the deployment engine costs per step: 200 steps over 40 light machines, against a bare Celery round trip
	@$(PY) -m benchmarks.rollout

bench-failover: $(VENV)/.dev  ## how long a group stands still, per kind of fault (root): PROFILE=lan TRIALS=20 STORAGE=disk,ram; LOAD=3600 counts false takeovers
	@.ci/system-packages
	@$(PY) -m benchmarks.failover --profile $(PROFILE) --trials $(TRIALS) --storage $(STORAGE) $(if $(LOAD),--load $(LOAD))

# The environment is built under a lock, so that two commands can start at once; the stamp names the lock file it came from.
$(VENV)/.run: requirements.txt
	@mkdir -p $(VENV) && flock $(VENV).lock .ci/environment "$(PYTHON)" $(VENV) requirements.txt .run

$(VENV)/.dev: requirements-dev.txt
	@mkdir -p $(VENV) && flock $(VENV).lock .ci/environment "$(PYTHON)" $(VENV) requirements-dev.txt .dev

lock: $(VENV)/.dev  ## renew the hashed lock files from pyproject.toml
	$(PY) -m pip install -q uv
	$(PY) -m uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--extra portal --extra embedded --extra cli --custom-compile-command "make lock" -o requirements.txt pyproject.toml
	$(PY) -m uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--extra portal --extra embedded --extra cli --extra postgres --extra dev --custom-compile-command "make lock" -o requirements-dev.txt pyproject.toml

bench-properties: $(VENV)/.dev  ## the grid and the missing-value check with 10,000 properties, in milliseconds
	$(PY) benchmarks/properties.py

format: $(VENV)/.dev  ## put the code in its usual shape
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what the tests and tools left behind (never var/)
	rm -rf .mypy_cache .pytest_cache .ruff_cache build *.egg-info
