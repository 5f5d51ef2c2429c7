# Every target builds or completes .venv by itself; a second run installs nothing.
# Another Python for a new .venv: make test PYTHON=/path/to/python3.13

PY := .venv/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test slow lint docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

quickstart: ## run the first example
	@sh scripts/install.sh examples
	$(PY) examples/01_quickstart.py

test: lint ## lint, then run the tests
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

slow: ## run the tests that take long: several processes, all pages, trained networks
	@sh scripts/install.sh dev
	$(PY) -m pytest -n 2 --dist loadfile -m slow

lint: ## ruff and pyright
	@sh scripts/install.sh dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: ## build docs/_build/html
	@sh scripts/install.sh docs
	$(PY) -m sphinx -E -W --keep-going -b html docs docs/_build/html

bench: ## run the benchmarks
	@sh scripts/install.sh examples
	$(PY) examples/benchmarks/run_all.py

clean: ## remove caches and outputs; .venv stays
	rm -rf build dist docs/_build quickstart_output .pytest_cache .ruff_cache
	find langevin_ppl tests examples docs -name __pycache__ -prune -exec rm -rf {} +
