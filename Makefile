# Both targets set everything up in .venv first; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow docs lint clean

demo: .venv/demo  ## Train, classify and report on embedded digits, about a minute after set-up; prints the page's path last.
	$(BIN)/tdsm demo

test: .venv/installed lint  ## All checks: lint, layers, types, tests, doctests.
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4

slow: .venv/installed  ## The long repeats that `make test` leaves out.
	$(BIN)/python -m pytest -m slow

docs: .venv/installed  ## The site, under build/site.
	$(BIN)/zensical build --strict

lint: .venv/installed
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/lint-imports
	$(BIN)/mypy

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[report]"
	touch $@

.venv/installed: .venv/demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
	touch $@

clean:
	rm -rf .venv
