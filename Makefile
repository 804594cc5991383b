# Every target sets up what it needs: a virtual environment in .venv, built from constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
ARGS   ?=
JOBS   ?= 2
# one thread for each of JOBS processes: more would compete for the same cores
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test check format teacher faults families picture bench bench-gpu verify-real gpu-carry docs clean

demo: $(VENV)/ready        ## distil the miniature teacher into the miniature student, end to end
	$(BIN)/firstsight demo --dir demo

test: $(VENV)/ready        ## every test, in JOBS processes
	$(PYTEST) $(ARGS)

check: $(VENV)/ready       ## format, lint, types: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

teacher: $(VENV)/ready     ## train the miniature teacher and student base again (about 75 minutes on 2 cores)
	$(BIN)/python -m firstsight.demo.miniature.train --out build/miniature

faults: $(VENV)/ready      ## hundreds of kills and bit flips; the suite runs a minute of each
	FIRSTSIGHT_FAULTS=long $(BIN)/python -m pytest -m faults --timeout=7200 $(ARGS)

families: $(VENV)/ready    ## both phases for every model family and for mixed pairs; the suite runs two of them
	FIRSTSIGHT_FAMILIES=all $(PYTEST) tests/families $(ARGS)

picture: demo              ## docs/report.png: the demo's report, by Chromium
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1120,2644 --screenshot=docs/report.png docs/picture.html

bench: $(VENV)/bench       ## every ratio of docs/benchmarks.md, in less than 40 minutes of two free cores (benchmarks/README.md)
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(VENV)/ready   ## both phases at full size on this GPU, in seven minutes (benchmarks/README.md)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

verify-real: $(VENV)/ready ## the reference pair from the hub, checked on this GPU: a table to paste into an issue
	$(BIN)/python -m benchmarks.verify_real build/verify $(ARGS)

gpu-carry:                 ## build/carry: what the same needs on a GPU box without a network, 64 MiB at most
	$(PYTHON) -m benchmarks.gpu.carry make build/carry $(ARGS)

docs: $(VENV)/ready        ## docs/cli.md from --help, docs/recipe.md from the fields of the recipe, docs/models.md from the families
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_models.py
	$(BIN)/python docs/make_recipe.py

clean:
	rm -rf $(VENV) build demo runs .pytest_cache .mypy_cache .ruff_cache

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "firstsight needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@
