# What CI runs, and a person too. Python 3.11 or later and make are enough: uv is fetched where there is none.
.PHONY: check test test-all shapes docs package digits notebooks golden counts bench audit lowest fuzz

UV := $(or $(shell command -v uv),.uv/bin/uv)
RUN := $(UV) run
# Containers set it to keep images small; every start would then compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

check: $(UV)  ## lint, format, types, and which room may import which
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright
	$(RUN) lint-imports

test: $(UV)  ## the suite without its slow part: some six minutes on two cores of 2023
	$(RUN) pytest -n 2 --dist worksteal
	$(RUN) pytest -n 2 --dist loadfile README.md docs
	$(MAKE) shapes

# Not under Dynamo, which does not trace the checker, and not where a test passes what no annotation allows.
SHAPES := tests/ops tests/layers tests/heads/test_detection_heads.py tests/heads/test_fpn.py \
	tests/models/test_contract.py::test_what_evaluation_keeps_follows_the_parameters \
	tests/tasks/test_segment.py::test_training_and_evaluation tests/tasks/test_detect.py::test_images_without_objects

shapes: $(UV)  ## the shapes in the annotations of ops, layers and heads, checked at every call
	$(RUN) python -m pytest -q -p tests.checker -k "not compile and not do_not_add_up" \
		--jaxtyping-packages=transept.ops,transept.layers,transept.heads,tests.checker.check $(SHAPES)

test-all: test  ## everything: full-size models, and the built-in recipes to the accuracy that they claim
	$(RUN) pytest -m slow

docs: $(UV)  ## the site, in docs/_build; a warning is an error
	$(RUN) sphinx-build -q -W -b html docs docs/_build

package: $(UV)  ## wheel and source archive, each installed in an environment of its own and tried
	UV=$(UV) .ci/package

digits: $(UV)  ## trains, evaluates and labels: about two minutes on two cores; an older run moves aside
	@if [ -e runs/digits ]; then mv -v runs/digits runs/digits.$$(date +%Y-%m-%dT%H-%M-%S); fi
	$(RUN) transept train digits
	$(RUN) transept eval runs/digits
	$(RUN) transept predict runs/digits runs/digits/samples --out runs/digits/labelled.png
	@echo "to type transept in this shell: . .venv/bin/activate"

notebooks: $(UV)  ## run the notebooks and store their outputs; minutes each
	$(RUN) python docs/notebooks/run.py

golden: $(UV)  ## rewrite tests/golden from the recordings of the official models
	$(RUN) python tests/golden/make.py

counts: $(UV)  ## rewrite the kept costs of all models
	$(RUN) python -m transept.cost.kept

bench: $(UV)  ## speed beside timm on two quiet cores: half an hour; writes benchmarks/results
	$(RUN) python benchmarks/cpu.py

lowest: $(UV)  ## each verb and extra with the oldest versions that pyproject.toml allows, in an environment of its own
	UV=$(UV) .ci/lowest

READER := weights
SECONDS := 1800
fuzz: $(UV)  ## mutates files for READER (weights, images, annotations, coco, recipes, labels) for so many SECONDS
	$(RUN) --with atheris python -m fuzz.seeds fuzz/corpus
	$(RUN) --with atheris python -m fuzz.readers $(READER) -max_total_time=$(SECONDS) -timeout=600 \
		-rss_limit_mb=3072 -artifact_prefix=fuzz/ fuzz/corpus/$(READER)

# Strictly and from a list: in the environment itself pip-audit passes over what its service does not know, torch's
# +cu builds among it, and over everything where the service cannot be reached, and calls that no vulnerability.
audit: $(UV)  ## known vulnerabilities of what is installed; needs the network, and fails where a package has no answer
	$(UV) export --quiet --all-extras --no-emit-project --output-file .uv/installed.txt
	$(RUN) pip-audit --strict --disable-pip --requirement .uv/installed.txt

# An environment of its own, for many systems let nobody install into theirs (PEP 668).
.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv
