# `make tutorial` runs the lessons, `make check` tests while you work, `make test` tests all. Each creates .venv when it
# is absent or stale. `make tutorial PROFILE=segroot ONLY=03,04,05` takes other parameters, and some lessons only.
PYTHON ?= python3
PIP := .venv/bin/python -m pip
PROFILE ?= quick
export MPLBACKEND ?= agg
# Two processes of one thread each; a file of tests stays in one of them: the lessons build on each other.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: tutorial check test notebooks lint format clean
tutorial: .venv/installed
	.venv/bin/python -m rootsam_lib tutorial --profile $(PROFILE) $(if $(ONLY),--only $(ONLY))

# A few minutes: style, the fast tests, and the first three lessons on their defaults.
check: .venv/installed lint
	$(PYTEST) -m "not slow" --nbmake --nbmake-timeout=900 tests $(wildcard notebooks/0[0-2]_*.ipynb)

# All: every lesson is executed once, with changed parameters, by tests/test_lessons.py.
test: .venv/installed lint
	$(PYTEST)

# For maintainers: run every notebook from nothing on its defaults, and store the outputs and their metrics.
notebooks: .venv/installed
	rm -rf runs/quick
	.venv/bin/python -m rootsam_lib tutorial --update

lint: .venv/installed
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

format: .venv/installed
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

# torch comes first, then sam2 is built against it: with build isolation pip would fetch a second torch for the build.
.venv/installed: pyproject.toml notebooks/jupyter_nbconvert_config.json
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet "setuptools>=61" wheel "torch>=2.5.1" "torchvision>=0.20.1"
	SAM2_BUILD_CUDA=0 $(PIP) install --quiet --no-build-isolation --editable ".[dev]"
	mkdir -p .venv/etc/jupyter && cp notebooks/jupyter_nbconvert_config.json .venv/etc/jupyter  # alt texts in its pages
	touch $@

clean:
	rm -rf .venv runs
