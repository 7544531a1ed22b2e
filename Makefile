# The commands of the README. A virtual environment in .venv is made at first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test quick quick-light quick-rest lint clean setup

setup: $(VENV)/.ready

$(VENV)/.ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,import,test]"
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

# While working: neither tests of scripts nor slow ones. Two runs side by side; the first needs no TensorFlow.
LIGHT := $(addprefix tests/, chip commands serve \
	$(patsubst %, test_%.py, cli docs errors files hostile_files param_parser rooms))
QUICK := $(BIN)/python -m pytest -q -m "not slow" --hypothesis-profile quick

quick: setup
	$(MAKE) --jobs 2 quick-light quick-rest

quick-light:
	$(QUICK) $(LIGHT)

quick-rest:
	$(QUICK) --ignore tests/scripts $(LIGHT:%=--ignore %)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis reports
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
