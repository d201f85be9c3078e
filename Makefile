# Each target does its own set-up on a fresh machine.
PIPELINE ?= examples/demo.yaml
# The first interpreter that the packages support.
PYTHON   ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.installed
# The repository's root must never be on the import path: a folder called `triton` lies there.
export PYTHONSAFEPATH := 1

.PHONY: demo up build-engine model-repo serve perf test lint bench bench-engine bench-convert bench-verify bench-overhead bench-fairness bench-drafts soak clean help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## create .venv with the pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 was not found"; exit 4; }
	@test -x $(BIN)/python || { echo "setting up $(VENV) (about a minute, once)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,serve,perf,dev]'
	@touch $@

examples/checkpoints/tiny-llama/config.json: | $(STAMP)
	$(BIN)/python examples/make_checkpoint.py --out $(@D)

demo: $(STAMP) examples/checkpoints/tiny-llama/config.json  ## the main job, on a small seeded checkpoint
	$(BIN)/shardyard up examples/demo.yaml

up: $(STAMP)     ## the main job, on PIPELINE
	$(BIN)/shardyard up $(PIPELINE)

build-engine: $(STAMP)  ## convert, verify and build PIPELINE
	$(BIN)/shardyard convert $(PIPELINE)
	$(BIN)/shardyard verify $(PIPELINE)
	$(BIN)/shardyard build $(PIPELINE)

model-repo: build-engine  ## fill the Triton model repository of PIPELINE
	$(BIN)/shardyard fill $(PIPELINE)

serve: $(STAMP)  ## serve PIPELINE until Ctrl-C
	$(BIN)/shardyard serve $(PIPELINE)

perf: $(STAMP)   ## load-test PIPELINE
	$(BIN)/shardyard perf $(PIPELINE)

# Two at a time: much of what tests do is to wait for servers. A file's tests share what they start.
test: $(STAMP)   ## run every test
	$(BIN)/pytest --numprocesses 2 --dist loadfile

lint: $(STAMP)   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/lint/typecheck.py

bench: bench-engine bench-convert  ## every benchmark

bench-engine: $(STAMP)  ## decode and prefill rates of the embedded engine, beside the machine's limits (BENCH_ARGS="--shape moe": experts)
	$(BIN)/python -m shardyard.perf.bench_engine $(BENCH_ARGS)

bench-convert: $(STAMP)  ## speed and memory of convert, beside a plain cp of the same bytes
	$(BIN)/python -m shardyard.perf.bench_convert $(BENCH_ARGS)

MINUTES ?= 3
soak: $(STAMP) examples/checkpoints/tiny-llama/config.json  ## load PIPELINE beyond its capacity for MINUTES, with cancels, disconnects and wrong requests
	$(BIN)/python -m shardyard.perf.soak $(PIPELINE) --minutes $(MINUTES)

bench-overhead: $(STAMP)  ## what serving adds to the engine alone: TTFT, time per token, tokens/s
	$(BIN)/python -m shardyard.perf.bench_overhead $(BENCH_ARGS)

bench-fairness: $(STAMP)  ## how long running streams wait while long prompts come in
	$(BIN)/python -m shardyard.perf.bench_fairness $(BENCH_ARGS)

bench-drafts: $(STAMP)  ## prompt lookup and a draft model on summaries, beside the same engine without drafts
	$(BIN)/python -m shardyard.perf.bench_drafts $(BENCH_ARGS)

bench-verify: $(STAMP)  ## memory of certifying 70B-sized layers one at a time
	$(BIN)/python -m shardyard.perf.bench_verify $(BENCH_ARGS)

clean:           ## remove what the targets made, not work/
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
