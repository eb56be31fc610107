SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/prunebench
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

METHOD ?= visipruner
MODEL ?= mini
DIR ?= tests/goldens
RESULTS ?= results/local
CONFIG ?= configs/mini.yaml

.PHONY: help venv gpu-check eval sweep ablate analyze methods doctor goldens bench regress baseline leaderboard report show mini mini-data test check lint clean clean-venv

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) harness/bootstrap.py $(VENV)

venv: $(STAMP)  ## create .venv from pyproject.toml and constraints.txt

eval: $(STAMP)  ## METHOD= BUDGET= [MODEL= TASKS= LIMIT= BATCH= SEED= DEVICE= DTYPE= DATA= POSITIONS= SET='knob=value' FRESH=1]
	@$(RUN) eval --method "$(METHOD)" --model "$(MODEL)" --results "$(RESULTS)" \
	  $(if $(BUDGET),--budget "$(BUDGET)") $(if $(TASKS),--tasks "$(TASKS)") $(if $(LIMIT),--limit "$(LIMIT)") $(if $(BATCH),--batch "$(BATCH)") \
	  $(if $(SEED),--seed "$(SEED)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(DTYPE),--dtype "$(DTYPE)") $(if $(DATA),--data "$(DATA)") \
	  $(if $(POSITIONS),--positions "$(POSITIONS)") $(if $(SET),--set "$(SET)") $(if $(filter-out 0,$(FRESH)),--fresh)

sweep: $(STAMP)  ## CONFIG=configs/mini.yaml [SET='limit=50 budgets=64' LIMIT= BATCH= WORKERS= DEVICE= FRESH=1 DRY_RUN=1]
	@$(RUN) sweep "$(CONFIG)" --results "$(RESULTS)" $(if $(SET),--set "$(SET)") $(if $(LIMIT),--limit "$(LIMIT)") $(if $(BATCH),--batch "$(BATCH)") \
	  $(if $(WORKERS),--workers "$(WORKERS)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(filter-out 0,$(FRESH)),--fresh) \
	  $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

ablate: $(STAMP)  ## FILE=configs/ablations/... [MODEL= TASKS= LIMIT= BATCH= DEVICE=]
	@$(RUN) ablate "$(FILE)" --results "$(RESULTS)" --model "$(MODEL)" $(if $(TASKS),--tasks "$(TASKS)") $(if $(LIMIT),--limit "$(LIMIT)") \
	  $(if $(BATCH),--batch "$(BATCH)") $(if $(DEVICE),--device "$(DEVICE)")

analyze: $(STAMP)  ## where MODEL uses vision, and a VisiPruner config for it [TASKS= LIMIT= BATCH= DEVICE= DATA= CALIBRATION_DATA= OUT=]
	@$(RUN) analyze "$(MODEL)" $(if $(TASKS),--tasks "$(TASKS)") $(if $(LIMIT),--limit "$(LIMIT)") $(if $(BATCH),--batch "$(BATCH)") \
	  $(if $(DEVICE),--device "$(DEVICE)") $(if $(DATA),--data "$(DATA)") $(if $(CALIBRATION_DATA),--calibration-data "$(CALIBRATION_DATA)") \
	  $(if $(OUT),--out "$(OUT)") $(if $(filter mini,$(MODEL))$(CALIBRATION_DATA),--write-config)

methods: $(STAMP)  ## the registered methods
	@$(RUN) methods

doctor: $(STAMP)  ## versions, device, and what mends a broken installation
	@$(RUN) doctor

goldens: $(STAMP)  ## replay recorded official outputs; DIR=folder (default tests/goldens)
	@$(RUN) goldens "$(DIR)"

bench: $(STAMP)  ## time methods beside the unpruned model; MODEL= [BENCH='--random-weights --batch 1'] (prunebench bench --help)
	@$(RUN) bench --model "$(MODEL)" $(if $(DEVICE),--device "$(DEVICE)") $(if $(DTYPE),--dtype "$(DTYPE)") $(BENCH)

regress: $(STAMP)  ## run configs/regress.yaml and compare with the committed baseline; exit code 1 where it differs [GATE= BASELINE= WORKERS=]
	@$(RUN) regress $(if $(GATE),"$(GATE)") $(if $(BASELINE),--baseline "$(BASELINE)") $(if $(WORKERS),--workers "$(WORKERS)")

baseline: $(STAMP)  ## renew that baseline, and show what changes; needs a clean checkout
	@$(RUN) baseline $(if $(GATE),"$(GATE)") $(if $(BASELINE),--baseline "$(BASELINE)") $(if $(WORKERS),--workers "$(WORKERS)")

leaderboard: $(STAMP)  ## tables, comparisons and figures from the sealed cells in RESULTS
	@$(RUN) leaderboard --results "$(RESULTS)"

report: $(STAMP)  ## one page from the sealed cells in RESULTS: [SAMPLES=100 DATA= OUT=]
	@$(RUN) report --results "$(RESULTS)" $(if $(SAMPLES),--samples "$(SAMPLES)") $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

show: $(STAMP)  ## one sample as a picture: SAMPLE=pope/000123 METHOD=visipruner,fastv [BUDGET= OUT=]
	@$(RUN) show --results "$(RESULTS)" --sample "$(SAMPLE)" --method "$(METHOD)" $(if $(BUDGET),--budget "$(BUDGET)") \
	  $(if $(filter-out mini,$(MODEL)),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

mini-data: $(STAMP)  ## rebuild the mini data sets, bit-identical
	@$(RUN) mini data

mini: mini-data  ## rebuild the mini world: data and model (hours on a CPU)
	@$(RUN) mini train --out results/local/mini-training
	@$(RUN) mini export results/local/mini-training

test: $(STAMP)  ## the fast tests, offline
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" tests

lint: $(STAMP)  ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

check: lint  ## lint and every test
	@$(VENV)/bin/python -m pytest -m "not gpu" tests

clean:  ## remove caches; results stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv:  ## remove the virtual environment
	@rm -rf $(VENV)

gpu-check:  ## OUT=folder: what only a GPU can settle, in nine minutes, without .venv [DEVICE=cpu rehearses; WHEELS=1 lists what it needs]
	@python="$$(for p in "$(PYTHON)" $(VENV)/bin/python; do "$$p" -c 'import importlib.util as u; exit(not u.find_spec("torch"))' 2> /dev/null && echo "$$p" && break; done)"; \
	  "$${python:-$(PYTHON)}" -m harness.gpu_check $(if $(filter-out 0,$(WHEELS)),--wheels) $(if $(OUT),--out "$(OUT)") $(if $(DEVICE),--device "$(DEVICE)")
