SHELL := /bin/bash -o pipefail

# Variables count only if the command line names them; the environment's do not. make evaluates no value: $(value) reads the text as typed.
# Without `unexport` and MAKEOVERRIDES, make would expand every value for each command's environment. Blanks and newlines before a value are lost.
override given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$v))
unexport $(given)
MAKEOVERRIDES :=

# The variables of each command: --option=VARIABLE or --option=VARIABLE=default; --=VARIABLE is given by position and stands last.
eval.takes := --method=METHOD=visipruner --budget=BUDGET --model=MODEL --tasks=TASKS --include=INCLUDE --limit=LIMIT --batch=BATCH --workers=WORKERS --seed=SEED \
  --device=DEVICE --dtype=DTYPE --data=DATA --prompt=PROMPT --image=IMAGE --as=AS --positions=POSITIONS --set=SET --results=RESULTS --fresh=FRESH --wide=WIDE \
  --clamp=CLAMP --judge=JUDGE --follow-up=FOLLOW_UP
sweep.takes := --set=SET --limit=LIMIT --batch=BATCH --workers=WORKERS --device=DEVICE --results=RESULTS --fresh=FRESH --dry-run=DRY_RUN \
  --wide=WIDE --clamp=CLAMP --executor=EXECUTOR --address=ADDRESS --gpus-per-worker=GPUS_PER_WORKER \
  --=CONFIG=configs/mini.yaml
ablate.takes := --model=MODEL --tasks=TASKS --limit=LIMIT --batch=BATCH --device=DEVICE --results=RESULTS --=CONFIG
analyze.takes := --method=METHOD --tasks=TASKS --limit=LIMIT --batch=BATCH --device=DEVICE --data=DATA --calibration-data=CALIBRATION_DATA --out=OUT --=MODEL=mini
methods.takes := --=METHOD
goldens.takes := --=DIR
bench.takes := --model=MODEL --device=DEVICE --dtype=DTYPE --=BENCH
regress.takes := --baseline=BASELINE --workers=WORKERS --=CONFIG
baseline.takes := $(regress.takes)
leaderboard.takes := --format=FORMAT --out=OUT --results=RESULTS
report.takes := --samples=SAMPLES --data=DATA --out=OUT --results=RESULTS
show.takes := --sample=SAMPLE --method=METHOD=visipruner --budget=BUDGET --model=MODEL --data=DATA --out=OUT --results=RESULTS
compare.takes := --tasks=TASKS --model=MODEL --results=RESULTS --results=RESULTS2 --out=OUT --page=PAGE --samples=SAMPLES --data=DATA --=METHODS
compare-models.takes := --tasks=TASKS --pairs=PAIRS --tolerance=TOLERANCE --seed=SEED --results=RESULTS --out=OUT --=MODELS
cost.takes := --budget=BUDGET --model=MODEL --image=IMAGE --set=SET --request=REQUEST --new-tokens=NEW_TOKENS --questions=QUESTIONS --batch=BATCH \
  --saving=SAVING --bandwidth=BANDWIDTH --peak=PEAK --results=RESULTS --times=TIMES --out=OUT --=METHOD=visipruner
kind.REQUEST := switch
# FRESH, DRY_RUN, WIDE, CLAMP, WHEELS and LOCKED are on unless 0 or empty; BENCH, METHODS and MODELS hold any number of arguments
kind.FRESH := switch
kind.DRY_RUN := switch
kind.WIDE := switch
kind.CLAMP := switch
kind.JUDGE := switch
kind.FOLLOW_UP := switch
kind.BENCH := several
kind.METHODS := several
kind.MODELS := several
venv.takes := --locked=LOCKED
kind.LOCKED := switch
mini.takes := --model=MODEL
gpu-check.takes := --out=OUT --device=DEVICE --wheels=WHEELS
kind.WHEELS := switch

commands := eval sweep ablate analyze methods doctor goldens bench regress baseline leaderboard compare compare-models report show cost
targets := $(commands) help venv gpu-check mini-data mini mini-clip test lint check docs clean clean-venv
.PHONY: $(targets)

# Wrong names are refused before anything runs.
goals := $(or $(MAKECMDGOALS),help)
takes := PYTHON $(foreach t,$(foreach g,$(goals),$($g.takes)),$(word 2,$(subst =, ,$t)))
strange := $(filter-out $(targets) .venv/.installed,$(goals))
surplus := $(filter-out $(takes),$(given))
renamed := $(filter FILE GATE,$(surplus))
$(if $(strange),$(error no target $(strange): `make help` lists them; a value with blanks needs quotes, as in MODEL='my folder'))
$(if $(renamed),$(error $(renamed) is called CONFIG in every target: `make $(goals) CONFIG=...`))
$(if $(surplus),$(error `make $(goals)` does not take $(surplus), it takes $(sort $(takes))))
$(if $(filter mini,$(goals)),$(if $(filter-out mini,$(goals)),$(error `make mini` overwrites the shipped weights: call it alone)))

VENV := .venv
RUN := $(VENV)/bin/prunebench
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

define newline


endef
# the text of a variable as typed; empty if the command line does not name it
typed = $(if $(filter command,$(origin $1)),$(value $1))
# one word for the shell; newlines are spelt \n, since make ends the command at a newline
quote = '$(subst $(newline),'$$'\n'',$(subst ','\'',$1))'
# one entry of `takes`: $1 option, $2 variable, $3 default
option = $(if $(call typed,$2),$1 $(call quote,$(value $2)),$(if $3,$1 $3))
switch = $(if $(filter-out 0,$(call typed,$2)),$1)
several = $(foreach w,$(call typed,$2),$(call quote,$w))
entry = $(call $(or $(kind.$(word 2,$1)),option),$(word 1,$1),$(word 2,$1),$(word 3,$1))
python = $(if $(call typed,PYTHON),$(call quote,$(value PYTHON)),python3)
arguments = $(foreach t,$($@.takes),$(call entry,$(subst =, ,$t)))

# only the embedded models have calibration data of their own
analyze.also = $(if $(call typed,CALIBRATION_DATA)$(findstring /$(or $(call typed,MODEL),mini)/,/mini/mini-qwen/),--write-config)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# messages then name what was typed: BATCH=0 and not --batch 0
$(commands): export PRUNEBENCH_CALLER := make
$(commands): $(STAMP)
	@$(RUN) $@ $($@.also) $(arguments)

$(STAMP): pyproject.toml constraints.txt
	@$(python) harness/install/bootstrap.py $(VENV) $(call switch,--locked,LOCKED)

venv: $(STAMP)  ## create .venv from pyproject.toml and constraints.txt; LOCKED=1 takes no file whose hash requirements.lock lacks

eval:  ## measure methods beside the unpruned model: METHOD= BUDGET= [MODEL= TASKS= LIMIT= BATCH= SEED= DEVICE= DTYPE= DATA= PROMPT= IMAGE= AS= POSITIONS= SET='knob=value' INCLUDE= JUDGE=1 CLAMP=1 FRESH=1 WIDE=1]
sweep:  ## measure all that a file names, as one table: CONFIG=configs/mini.yaml [SET='limit=50 budgets=64' LIMIT= BATCH= WORKERS= DEVICE= EXECUTOR=ray ADDRESS= GPUS_PER_WORKER= CLAMP=1 FRESH=1 DRY_RUN=1 WIDE=1]
ablate:  ## measure the variants of a method, as one table: CONFIG=configs/ablations/... [MODEL= TASKS= LIMIT= BATCH= DEVICE=]
analyze:  ## find where MODEL uses vision, and derive settings of VisiPruner, or of METHOD [METHOD= TASKS= LIMIT= BATCH= DEVICE= DATA= CALIBRATION_DATA= OUT=]
methods:  ## the registered methods; METHOD=fastv describes one (prunebench models and prunebench tasks list the others)
doctor:  ## versions, device, and what mends a broken installation
goldens:  ## replay recorded official outputs; DIR=folder (default tests/goldens)
cost:  ## compute costs without a run: METHOD=fastv BUDGET=64 [MODEL= IMAGE= SET=]; of whole requests: REQUEST=1 [RESULTS= TIMES=bench.json OUT=table.csv]
bench:  ## time methods beside the unpruned model; MODEL= [BENCH='--random-weights --batch 1'] (prunebench bench --help)
regress:  ## run configs/regress.yaml and compare with the committed baseline; exit code 1 where it differs [CONFIG= BASELINE= WORKERS=]
baseline:  ## renew that baseline, and show what changes; needs a clean checkout
leaderboard:  ## tables, comparisons and figures from the sealed cells in RESULTS; FORMAT=latex OUT=table.tex: one wide table for a paper
compare:  ## METHODS='fastv@64 sparsevlm@64' [TASKS= MODEL= RESULTS= RESULTS2= OUT=flips.csv PAGE=flips.html]: method against method
compare-models:  ## MODELS='mini mini-qwen' [TASKS= PAIRS='128=25%' TOLERANCE= SEED= RESULTS= OUT=folder]: do their rankings of methods agree
report:  ## one page from the sealed cells in RESULTS: [SAMPLES=100 DATA= OUT=]
show:  ## one sample as a picture: SAMPLE=pope/000123 METHOD=visipruner,fastv [BUDGET= OUT=]

mini-data: $(STAMP)  ## rebuild the data sets of the embedded models, bit-identical
	@$(RUN) dev mini data
	@$(RUN) dev mini data --model mini-qwen

mini: mini-data  ## rebuild the mini world: data and model (hours on a CPU); MODEL=mini-qwen: the other embedded model
	@$(RUN) dev mini train $(arguments) --out results/local/$(call quote,$(or $(call typed,MODEL),mini)-training)
	@$(RUN) dev mini export $(arguments) results/local/$(call quote,$(or $(call typed,MODEL),mini)-training)
	@$(if $(call typed,MODEL),$(if $(filter-out mini,$(call typed,MODEL)),true,$(RUN) dev mini clip),$(RUN) dev mini clip)

mini-clip: $(STAMP)  ## train the mini model's CLIP text tower again (minutes on a CPU)
	@$(RUN) dev mini clip

test: $(STAMP)  ## the fast tests, offline
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" tests

lint: $(STAMP)  ## ruff, its format, and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

check: lint  ## lint and every test
	@$(VENV)/bin/python -m pytest -m "not gpu" tests

$(VENV)/.docs: $(STAMP)
	@echo "prunebench: adding the packages of the documentation (once)"
	@$(VENV)/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## render docs/ into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "docs    site/index.html"

clean:  ## remove caches; results stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv:  ## remove the virtual environment
	@rm -rf $(VENV)

gpu-check:  ## OUT=folder: what only a GPU can settle, in nine minutes, without .venv [DEVICE=cpu rehearses; WHEELS=1 lists what it needs]
	@for p in $(python) $(VENV)/bin/python; do "$$p" -c 'import importlib.util as u; exit(not u.find_spec("torch"))' 2> /dev/null && break; done; \
	  "$$p" -m harness.gpu_check $(arguments)
