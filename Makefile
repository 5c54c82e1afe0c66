# What you can do here. `make demo` needs no key and no network beyond the package index; `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ASYNC_RULES := ASYNC100,ASYNC101,ASYNC102,ASYNC103,ASYNC104,ASYNC105,ASYNC106,ASYNC107,ASYNC108,ASYNC110,ASYNC112,ASYNC113,ASYNC114,ASYNC115,ASYNC116,ASYNC118,ASYNC120,ASYNC121,ASYNC122,ASYNC123,ASYNC125,ASYNC300,ASYNC900
# tests may poll what they watch, and start what need not be up yet
ASYNC_RULES_TESTS := ASYNC100,ASYNC101,ASYNC103,ASYNC104,ASYNC105,ASYNC106,ASYNC107,ASYNC108,ASYNC112,ASYNC115,ASYNC118,ASYNC121,ASYNC122,ASYNC300,ASYNC900

CLIENTS := node codex claude_code openclaw

.PHONY: demo test test-clients check bench bench-peers bench-micro fuzz fuzz-atheris docs lock sbom clean

demo: $(VENV)/.runtime        ## start the gateway with the scripted provider and ask it something (ONCE=1: then exit)
	@$(BIN)/clawproxy demo $(if $(ONCE),--once)

# Tests over sockets wait more than they compute: they run beside the others (not those of Ctrl-C: a shell's background job ignores it).
# What measures real time runs alone, after both.
WHOLE := tests/e2e tests/threats tests/benchmarks
REST  := tests $(addprefix --ignore=,$(WHOLE))

test: $(VENV)/.dev            ## all tests, under ten minutes (ARGS=...: only these)
ifeq ($(strip $(ARGS)),)
	@mkdir -p build; \
	$(BIN)/python -m pytest -q -m "not timed" $(WHOLE) >build/whole.log 2>&1 & whole=$$!; \
	$(BIN)/python -m pytest -q -m "not timed" $(REST); rest=$$?; \
	wait $$whole; whole=$$?; cat build/whole.log; \
	$(BIN)/python -m pytest -q -m timed $$(grep -rl 'mark[.]timed' tests --include='test_*.py'); timed=$$?; \
	[ $$rest -eq 0 ] && [ $$whole -eq 0 ] && [ $$timed -eq 0 ]
else
	$(BIN)/python -m pytest -q $(ARGS)
endif

# The async rules are slow, and have nothing to say of a file without a word of it.
check: $(VENV)/.dev           ## style, types, async rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	git grep -lE 'async |await |trio' -- 'clawproxy/*.py' 'plugins/*.py' | xargs -P 4 -n 60 $(BIN)/flake8-async --enable=$(ASYNC_RULES)
	git grep -lE 'async |await |trio' -- 'tests/*.py' | xargs -P 4 -n 60 $(BIN)/flake8-async --enable=$(ASYNC_RULES_TESTS)

test-clients: $(VENV)/.dev $(CLIENTS:%=build/clients/%/.installed)   ## OpenClaw, Claude Code and Codex, which it installs, run a turn each
	$(BIN)/python -m pytest -q tests/clients $(ARGS)

build/clients/%/.installed: tests/clients/%/package.json
	@mkdir -p $(@D) && cp $< $(@D)/
	cd $(@D) && PATH="$(CURDIR)/build/clients/node/node_modules/.bin:$$PATH" npm install --no-audit --no-fund --no-package-lock --loglevel=error
	@touch $@

build/clients/openclaw/.installed: build/clients/node/.installed

fuzz: $(VENV)/.dev            ## a hundred thousand generated bad inputs against a running gateway, new ones each time
	SEED=$${SEED:-$$$$} $(BIN)/python -m pytest -q -s tests/e2e/test_bad_inputs.py --bad-inputs=100000

fuzz-atheris: $(VENV)/.dev    ## guided by coverage, ten minutes (SECONDS=...): heads, frames, JSON, SSE, JWT, configuration; installs atheris
	@$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python -m tests.fuzz

bench: $(VENV)/.dev           ## what the gateway costs beside nginx and no gateway, under three minutes
	$(BIN)/python -m benchmarks.run quick

bench-peers: $(VENV)/.dev     ## the same with LiteLLM, Portkey and a hand-written gateway, which it installs
	$(BIN)/python -m benchmarks.peers

bench-micro: $(VENV)/.dev     ## microseconds of each part
	$(BIN)/python -m benchmarks.micro

docs: $(VENV)/.dev            ## write the generated parts of docs/ anew
	$(BIN)/python -m tests.docs.generate

lock:                         ## requirements.lock anew from setup.cfg: every package with its version and hashes (installs uv)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/python deploy/lock.py

sbom:                         ## sbom.json (CycloneDX) of what requirements.lock names; made at each release, not committed
	$(PYTHON) deploy/sbom.py

$(VENV)/.runtime: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.runtime $@

clean:
	rm -rf $(VENV) build dist sbom.json *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
