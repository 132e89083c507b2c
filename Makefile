# What CI runs, and a person too.
.PHONY: check test test-all golden counts bench audit

check:  ## lint, format, types, and which room may import which
	uv run ruff check .
	uv run ruff format --check .
	uv run pyright
	uv run lint-imports

test:  ## the suite without its slow part: about five minutes on two cores
	uv run pytest -n 2
	uv run pytest README.md docs/interop.md

test-all:  ## everything: full-size models, and the built-in recipes to the accuracy that they claim
	uv run pytest -n 2
	uv run pytest README.md docs/interop.md
	uv run pytest -m slow

golden:  ## rewrite tests/golden from the recordings of the official models
	uv run python tests/golden/make.py

counts:  ## rewrite the kept costs of all models
	uv run python -m transept.analysis.counted

bench:  ## speed beside timm, in one run; writes benchmarks/results
	uv run python benchmarks/eager.py

audit:  ## known vulnerabilities of the installed packages
	uv run pip-audit --skip-editable
