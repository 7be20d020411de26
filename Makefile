setup:      ; pip install -e ".[dev]" && pre-commit install
check:      ; ruff check . && ruff format --check . && mypy && lint-imports --no-cache && codespell
test-unit:  ; pytest -m unit
test:       ; pytest
test-soak:  ; pytest -m soak
.PHONY: setup check test-unit test test-soak
