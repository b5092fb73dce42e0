# Everything runs in .venv, which the first target that needs it makes from constraints.txt.
# Plain make and POSIX sh: works with GNU make 3.81 and BSD tools.
#
#   make demo        the main job: fine-tune, deploy, export, verify and benchmark a small model on real images
#   make test        lint, types and tests, those of make test-openmmlab among them
#   make test-openmmlab  the tests with mmdetection and mmsegmentation, alone
#   make test-full   the same over every variant; takes hours
#   make fast        the tests that take seconds
#   make lint        ruff and mypy
#   make format      let ruff rewrite the sources
#   make coverage    the tests, with the lines that none of them reached
#   make clean       remove what the other targets wrote; `make distclean` removes .venv too
#
# PYTHON=/path/to/python3 picks the interpreter that .venv is made with; WORKERS=N sets the test processes.

VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.mixzoo-installed
OPENMMLAB = $(VENV)/.mixzoo-openmmlab
EXTRAS = dev,export,train
PYTHON =
WORKERS = logical
# one thread to a worker: two workers with two threads each on two cores are slower than two with one
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses=4 --dist=worksteal

.PHONY: demo test test-main test-openmmlab test-full fast lint types format coverage clean distclean install
.DEFAULT_GOAL = test

demo: install
	@echo "==> running the demo; everything it makes goes to demo/"
	$(BIN)/python -m mixzoo.train.demo --out demo

test: lint
	@$(MAKE) test-main
	@$(MAKE) test-openmmlab

test-main: install
	@echo "==> testing"
	$(PYTEST) --ignore=tests/openmmlab

test-openmmlab: $(OPENMMLAB)
	@echo "==> testing with mmdetection and mmsegmentation"
	$(PYTEST) tests/openmmlab

test-full: lint
	@echo "==> testing every variant; this takes hours"
	$(PYTEST) -m "" --timeout=7200

fast: install
	@echo "==> testing what takes seconds"
	$(PYTEST) -m "not slow and not full"

lint: install
	@echo "==> checking style"
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	@echo "==> checking types"
	$(BIN)/python -m mypy

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

coverage: install
	@echo "==> testing, with coverage"
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine
	$(BIN)/python -m coverage report

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing mixzoo[$(EXTRAS)] and the versions in constraints.txt into $(VENV)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# mypy finds packages by folder name, and a checkout can be called anything
	@mkdir -p $(VENV)/mixzoo-src && rm -f $(VENV)/mixzoo-src/mixzoo && ln -s ../.. $(VENV)/mixzoo-src/mixzoo
	@touch $(STAMP)

# mmcv compiles its operators, without the isolation that would hide torch from it; debugging symbols and -O3 take much longer
$(OPENMMLAB): $(STAMP)
	@echo "==> installing mmdetection and mmsegmentation into $(VENV); mmcv compiles for 6 minutes on two cores"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt setuptools wheel ninja psutil
	MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[openmmlab]'
	@touch $(OPENMMLAB)

$(BIN)/python:
	@set -e; found=; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$$python; break; fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "mixzoo needs Python 3.10 or newer, and $(if $(PYTHON),$(PYTHON) is not,none was found on PATH)." >&2; \
	  echo "Install it (macOS: brew install python; Debian: apt install python3 python3-venv)," >&2; \
	  echo "or say where it is: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "==> making $(VENV) with $$found ($$("$$found" --version))"; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Could not make $(VENV): on Debian and Ubuntu, apt install python3-venv." >&2; exit 1; }

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
