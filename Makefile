# make lab: set up and open the notebooks.   make test: set up, then run every test and notebook.   make help: the rest.
PYTHON ?= python3
WORKERS ?= 2
LAB_ARGS ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
MINUTES ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)
NBVAL := --nbval --nbval-cell-timeout 300
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# An environment made for another folder (a copied checkout) would test the code in that folder: set up again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help setup lab test check slow long versions coverage mutate mutants ui ui-setup accept tour figures docs pictures bench bench-ui soak paper quality train ablate clean distclean

help:
	@echo 'make lab        set up, then open JupyterLab on the notebooks (LAB_ARGS=... is passed on)'
	@echo 'make test       set up, then run every test and every notebook'
	@echo 'make setup      set up only: make $(VENV) and install (PYTHON=python3.12 picks the Python)'
	@echo 'make check      ruff, mypy --strict, import-linter and the fast tests'
	@echo 'make slow       only the slow tests'
	@echo 'make long       the tests that are too long for every day, such as 24,000 damaged files; minutes'
	@echo 'make versions   the fast tests with the lowest versions allowed and the newest there are; uv comes from PyPI; half an hour'
	@echo '                (VERSIONS=py312-newest picks the Python and one of the two: lowest, newest)'
	@echo 'make coverage   every test, and which lines of blockkit none of them runs: fewer than 5 %'
	@echo 'make mutate     break the library in many small ways, one at a time: a notebook has to notice each; 15 minutes'
	@echo 'make mutants    break four modules in every small way, 1,600 of them: a test has to notice; an hour (MUTANTS_ARGS=planner)'
	@echo 'make ui         the widgets in a real JupyterLab and browser: needs chromium or chrome; screenshots in build/ui/'
	@echo 'make accept     run the notebooks from a fresh kernel and store their outputs'
	@echo 'make tour       run the notebooks without a browser and write them as HTML with the pictures'
	@echo 'make docs       the reference and the pages as HTML: build/docs/index.html'
	@echo 'make pictures   the two pictures of the README, from a real JupyterLab and browser: docs/images/'
	@echo 'make figures    run the notebooks and write their numbered figures as SVG, with a page of them all, to build/figures/'
	@echo 'make bench      memory, plans, NUFFT, ways to run a step, peers: tables in benchmarks/results/, half an hour'
	@echo 'make bench-ui   both widgets, from key press to new picture in a browser, in ms: benchmarks/results/ui.md'
	@echo 'make soak       10,000 training steps and 2,000 reconstructions: does memory, a count or the time of a step grow? 10 minutes'
	@echo 'make paper      training steps at the size of the paper: hours, goes on where it was stopped'
	@echo 'make quality    MBDL against tuned compressed sensing: quality, robustness, time; hours, goes on where it was stopped'
	@echo 'make train      train the weights file that comes with blockkit anew; MINUTES=100: stop after so many, the next call goes on'
	@echo 'make ablate     train small models with one choice changed at a time: an hour, goes on where it was stopped'
	@echo 'make clean      delete caches;  make distclean: also $(VENV) and build/, with the state of a training run'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'blockkit needs Python 3.11 or newer, and "$(PYTHON)" is not. Name one that is: make setup PYTHON=python3.12' >&2; exit 1; }
	@rm -f $(STAMP)
	@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { \
	  echo 'Making $(VENV) with '"$$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo 'Could not make $(VENV). On Debian and Ubuntu this command is missing: apt install python3-venv' >&2; exit 1; }; }
	@echo 'Installing blockkit and what it needs into $(VENV): the first time this takes minutes'
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[lab,test]'
	@printf '%s' '$(CURDIR)' > $(STAMP)
	@echo 'Set up.'

lab: setup
	$(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb $(AS_ROOT) $(LAB_ARGS)

test: setup
	@status=0; \
	echo 'The tests:'; $(PYTEST) tests || status=1; \
	echo 'The notebooks:'; $(PYTEST) $(NBVAL) notebooks || status=1; \
	exit $$status

check: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy blockkit
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(PYTEST) -m 'not slow' tests

slow: setup
	$(PYTEST) -m slow tests

long: setup
	$(PYTEST) -m long tests

versions:
	@$(PYTHON) -m venv build/versions/tox
	@build/versions/tox/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'tox-uv>=1.37' || { \
	  echo 'pip could not install tox-uv, which brings tox and uv: is PyPI in reach?' >&2; exit 1; }
	UV_PYTHON_DOWNLOADS=$${UV_PYTHON_DOWNLOADS:-never} build/versions/tox/bin/tox run $(if $(VERSIONS),-e $(VERSIONS)) -- -n $(WORKERS) --dist loadscope $(PYTEST_ARGS) tests

coverage: setup
	$(PYTEST) --cov --cov-report=term tests

mutate: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) -m mutation -rP $(PYTEST_ARGS) tests/notebooks/test_mutations.py

mutants: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[lab,test,mutants]'
	OMP_NUM_THREADS=1 $(PY) tools/mutants.py --workers $(WORKERS) $(MUTANTS_ARGS)

ui-setup: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[lab,test,ui]'

ui: ui-setup
	$(PY) -m pytest -m ui $(PYTEST_ARGS) tests/ui

accept: setup
	$(PY) tools/accept_notebooks.py

tour: setup
	$(PY) tools/tour.py

docs: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[lab,test,docs]'
	$(PY) tools/make_docs.py

pictures: ui-setup
	OMP_NUM_THREADS=1 $(PY) tools/pictures.py

figures: setup
	$(PY) tools/figures.py

bench: setup
	@for one in memory plans nufft methods peers gpu; do $(PY) benchmarks/$$one.py || exit 1; done

bench-ui: ui-setup
	$(PY) benchmarks/ui.py

soak: setup
	$(PY) benchmarks/soak.py

paper: setup
	$(PY) benchmarks/paper_size.py

quality: setup
	@for one in quality robustness speed; do $(PY) benchmarks/$$one.py || exit 1; done

train: setup
	$(PY) tools/train_shipped.py $(if $(MINUTES),--minutes $(MINUTES))

ablate: setup
	$(PY) tools/ablate.py

clean:
	rm -rf build/lib build/bdist.* build/tour build/figures dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

distclean: clean
	rm -rf build $(VENV)
