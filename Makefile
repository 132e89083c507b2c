# What CI runs, and a person too.
.PHONY: check test test-all docs notebooks golden counts bench audit

check:  ## lint, format, types, and which room may import which
	uv run ruff check .
	uv run ruff format --check .
	uv run pyright
	uv run lint-imports

test:  ## the suite without its slow part: about five minutes on two cores
	uv run pytest -n 2
	uv run pytest README.md docs

test-all:  ## everything: full-size models, and the built-in recipes to the accuracy that they claim
	uv run pytest -n 2
	uv run pytest README.md docs
	uv run pytest -m slow

docs:  ## the site, in docs/_build; a warning is an error
	uv run sphinx-build -q -W -b html docs docs/_build

notebooks:  ## run the notebooks and store their outputs; minutes each
	uv run python docs/notebooks/run.py

golden:  ## rewrite tests/golden from the recordings of the official models
	uv run python tests/golden/make.py

counts:  ## rewrite the kept costs of all models
	uv run python -m transept.cost.kept

bench:  ## speed beside timm on two quiet cores: half an hour; writes benchmarks/results
	uv run python benchmarks/cpu.py

audit:  ## known vulnerabilities of the installed packages
	uv run pip-audit --skip-editable
