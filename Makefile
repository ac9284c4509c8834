# Shortcuts. Each target makes .venv and installs requirements.txt first, when that is still to do.
# Without make: pip install -r requirements.txt, then the same `python -m mmkd_lite ...` commands.

.PHONY: reproduce test lab refresh lint venv help
.DEFAULT_GOAL := help

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/requirements.installed
# The first Python on the path that is new enough; override with `make PYTHON=/path/to/python ...`.
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for name in python3 python python3.13 python3.12 python3.11; do \
	$$name $(RECENT) 2>/dev/null && { echo $$name; break; }; done)
ARGS ?=

help:
	@echo 'make reproduce   run every notebook; scores on the terminal and in runs/latest/index.html'
	@echo 'make test        run the tests and check every notebook at the tiny scale'
	@echo 'make lab         open the notebooks in JupyterLab'
	@echo 'make refresh     run the notebooks again and store their outputs'
	@echo 'make lint        ruff and mypy'
	@echo 'Options go through ARGS, for example: make reproduce ARGS="--only 15 --seed 1"'

reproduce: venv
	$(RUN) -m mmkd_lite reproduce $(ARGS)

test: venv
	MMKD_SCALE=tiny $(RUN) -m pytest tests notebooks --nbval-lax \
		--nbval-sanitize-with tests/nbval_sanitize.cfg $(ARGS)

lab: venv
	$(RUN) -m jupyter lab notebooks/00_start_here.ipynb $(ARGS)

refresh: venv
	$(RUN) -m mmkd_lite refresh $(ARGS)

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# The stamp is a copy of requirements.txt: unchanged requirements are not installed again.
venv:
	@test -x $(RUN) || { \
		test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; none found on the path.' \
			'Install one, or name it: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }; \
		echo 'making $(VENV) with $(PYTHON)'; \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@cmp -s requirements.txt $(INSTALLED) || { \
		$(RUN) -m pip install --disable-pip-version-check -r requirements.txt && \
		cp requirements.txt $(INSTALLED); }
