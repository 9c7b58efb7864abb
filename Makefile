# Everything works from a fresh clone: the environment is made on the first call and kept in .venv.

PYTHON ?= python3
VENV   ?= .venv
PRESET ?= base_small
STEPS  ?= 300
SEED   ?= 0
ROUNDS ?= 200
RUN    ?= runs/demo-$(PRESET)
# Tests share two cores; one BLAS thread a process keeps them out of each other's way.
TEST_ENV = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
BIN    = $(VENV)/bin
READY  = $(VENV)/.ready

# A preset of a device learns from the simulated one, of a string from synthetic notes, of pitch
# repair from synthetic music shifted and shifted back, all others from the demo mixes.
ifneq ($(filter pedal%,$(PRESET)),)
DEMO = data/pedal/dataset.json
else ifneq ($(filter string%,$(PRESET)),)
DEMO = data/string/dataset.json
else ifneq ($(filter pitch%,$(PRESET)),)
DEMO = data/pitch/dataset.json
else
DEMO = data/fg/dataset.json
endif

BENCHES = shards mixing step startup exact context pedal_speed features stop watch

.PHONY: help env train test test-fast check lint types docs bench fuzz stops gan faults clusters clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(READY)  ## the environment in .venv

$(READY): pyproject.toml
	@echo "== environment: creating $(VENV) with $(PYTHON) and installing (one to five minutes, mostly torch)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"python3 is {v[0]}.{v[1]}; needed 3.10 to 3.12: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar off -e '.[dev]'
	@touch $(READY)

train: env $(DEMO)  ## demo corpora, a short run of the main job (or of PRESET=...), its evaluation
	@echo "== training: $(STEPS) steps of the preset $(PRESET) into $(RUN); run it again to go on, or stop it with Ctrl-C"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed launch/train.py --hparams $(PRESET) --run-dir $(RUN) \
		--set max_steps=$(STEPS) --set warmup_steps=20 --set eval_every=$(STEPS) --set save_every=100
	@echo "== evaluation on the fixed validation list"
	@$(BIN)/python launch/evaluate.py --run $(RUN) --json $(RUN)/evaluation.json
	@echo "== done: listen in $(RUN)/samples, look with: $(BIN)/tensorboard --logdir $(RUN)/tensorboard"

data/fg/dataset.json: | env
	@echo "== demo corpora: synthetic voices, notes, noise and rooms into data/ (half a minute)"
	@$(BIN)/python launch/demo_corpora.py

data/pedal/dataset.json: | env
	@echo "== demo corpus: synthetic guitar through a simulated overdrive into data/pedal (half a minute)"
	@$(BIN)/python launch/demo_corpora.py --kind pedal

data/string/dataset.json: | env
	@echo "== demo corpus: synthetic Karplus-Strong notes of known pitch and decay into data/string (a minute)"
	@$(BIN)/python launch/demo_corpora.py --kind string

data/pitch/dataset.json: | env
	@echo "== demo corpus: synthetic notes and voices, shifted in pitch and back, into data/pitch (a minute)"
	@$(BIN)/python launch/demo_corpora.py --kind pitch

test: env  ## all tests
	@echo "== tests"
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: env  ## the tests that take seconds
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not multi"

check: lint types test  ## linters, types, tests

lint: env  ## ruff: style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: env  ## mypy over the four packages
	@$(BIN)/mypy

docs: env  ## generated documentation and the JSON schema of presets
	@$(BIN)/python -m hparams.docs

bench: env  ## the measurements, one after another (half an hour; on an idle machine)
	@failed=; for name in $(BENCHES); do \
		echo "== bench.bench_$$name"; \
		$(BIN)/python -m bench.bench_$$name || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "== short of the figure wanted:$$failed"; exit 1; fi

stops: env  ## every way to stop a run at every moment of it (89 cells; half an hour)
	@WAVEWRIGHT_STOPS=1 $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal tests/end_to_end/test_stops.py

gan: env  ## a GAN stopped and gone on with, bit for bit, at ZeRO 0, 1, 2 in fp32 and bf16 (ten minutes)
	@WAVEWRIGHT_GAN=1 $(TEST_ENV) $(BIN)/python -m pytest tests/end_to_end/test_enhance_job.py -k "resume"

clusters: env  ## runs on a real Slurm and over two network namespaces of this machine (root; a quarter of an hour)
	@WAVEWRIGHT_CLUSTERS=1 $(TEST_ENV) $(BIN)/python -m pytest tests/clusters

fuzz: env  ## 20,000 spoiled files, each read under limits: typed errors only (a quarter of an hour; SEED=0)
	@$(TEST_ENV) $(BIN)/python -m tests.fuzz --seed $(SEED)

faults: env  ## faults at random moments of real training, each compared with an unbroken run (an hour; ROUNDS=200 SEED=0)
	@$(TEST_ENV) $(BIN)/python -m tests.faults --seed $(SEED) --rounds $(ROUNDS)

clean:  ## remove caches and build leftovers; keeps .venv, data and runs
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
