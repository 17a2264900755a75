# Two commands do all the set-up: "make demo" and "make test".
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: demo test check format api-snapshot fuzz-api fuzz-security soak security-table local-llm clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/basic_runner_usage.py

test: $(VENV)/.installed
	$(BIN)/pytest -n 3 $(PYTEST_ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After a change of the public API: see docs/compatibility.md.
api-snapshot: $(VENV)/.installed
	$(BIN)/python -m tests.docs.public_api

# What default CI does with few examples or small sizes.
fuzz-api: $(VENV)/.installed
	NECROCODE_API_EXAMPLES=300 $(BIN)/pytest --timeout 3600 tests/services/test_openapi.py $(PYTEST_ARGS)

# Paths, answers, leaks and URLs at random: docs/testing.md says what it last found.
fuzz-security: $(VENV)/.installed
	NECROCODE_FUZZ_EXAMPLES=$${NECROCODE_FUZZ_EXAMPLES:-5000} $(BIN)/pytest --timeout 7200 tests/security/test_fuzz.py $(PYTEST_ARGS)

soak: $(VENV)/.installed
	$(BIN)/pytest --timeout 3600 -m soak tests $(PYTEST_ARGS)

# Every attack on running tests behind every sandbox of this machine, for docs/security.md.
security-table: $(VENV)/.installed
	$(BIN)/python -m tests.security.table

# Needs a real model behind OPENAI_BASE_URL; see docs/testing.md.
local-llm: $(VENV)/.installed
	$(BIN)/pytest -m local_llm tests/local_llm $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage*
