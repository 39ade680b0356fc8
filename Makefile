# The same few commands for people and for CI; `make` lists them.
#
# make keeps track of what is built: one virtual environment per Python under .venv/, one wheel
# (stable ABI, so one build serves them all), installed into each. What then runs is decided in
# scripts/suite.py. Nothing is rebuilt when nothing changed.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup demo check test test-stdlib stress soak bench bench-check bench-lanes clean

# Rounds of `make stress`, and whether every core is kept busy meanwhile.
N ?= 20
LOAD ?= 0
# Whether `make bench-check` takes what it counts for what it should be.
UPDATE ?= 0
# Passed on to the programs behind `make demo`, `make bench` and `make bench-lanes`, as in `make bench ARGS=--quick`.
ARGS ?=
# Nothing that is measured or tested here knows what earlier runs have measured.
export RIGHTLANE_PROFILES := 0

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo '  PYTHONS="python3.11 /opt/py/bin/python3"  which Pythons to use (else: every 3.11+ found)'

ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)

FOUND := $(shell PYTHONS="$(PYTHONS)" sh scripts/tools.sh)
ifeq ($(firstword $(FOUND)),!)
$(error $(wordlist 2,$(words $(FOUND)),$(FOUND)))
endif

# FOUND is "3.11=/usr/bin/python3.11 3.12=…", oldest first.
MINORS := $(foreach found,$(FOUND),$(firstword $(subst =, ,$(found))))
OLDEST := $(firstword $(MINORS))
interpreter = $(patsubst $(1)=%,%,$(filter $(1)=%,$(FOUND)))

# The oldest Python is the one whose language the package keeps to, so it also runs the checks.
PYTHON := .venv/$(OLDEST)/bin/python
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
SUITE := $(PYTHON) scripts/suite.py

# Directories are listed too: their time changes when a file in them is removed.
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE-MIT LICENSE-APACHE \
	$(shell find crates python -name __pycache__ -prune -o ! -name '*.pyc' -print)

# A stamp gets the time at which its step began, so that a file saved while the step ran is newer.
.PRECIOUS: .venv/%/.tools .venv/%/.installed
.venv/%/.tools: requirements-dev.txt .venv/%.from
	@echo 'venv      .venv/$* ($(call interpreter,$*))'
	@rm -rf .venv/$*
	@touch .venv/$*.began
	@$(call interpreter,$*) -m venv .venv/$*
	@.venv/$*/bin/python -m pip install $(PIP_FLAGS) -r requirements-dev.txt
	@mv .venv/$*.began $@

build/wheel/.built: $(SOURCES) | .venv/$(OLDEST)/.tools
	@echo 'wheel     build/wheel'
	@rm -rf build/wheel && mkdir -p build/wheel
	@touch build/wheel/.began
	@.venv/$(OLDEST)/bin/maturin build --release --compatibility linux \
		--interpreter $(PYTHON) --out build/wheel
	@mv build/wheel/.began $@

.venv/%/.installed: build/wheel/.built .venv/%/.tools
	@echo 'install   .venv/$*'
	@touch .venv/$*/.began
	@.venv/$*/bin/python -m pip install $(PIP_FLAGS) --force-reinstall --no-deps --no-index build/wheel/*.whl
	@mv .venv/$*/.began $@

# A stranger's environment: the wheel and what it asks for, and the peers; none of the tools.
.venv/bench/.installed: build/wheel/.built requirements-bench.txt .venv/$(OLDEST).from
	@echo 'venv      .venv/bench ($(call interpreter,$(OLDEST)))'
	@rm -rf .venv/bench
	@touch .venv/bench.began
	@$(call interpreter,$(OLDEST)) -m venv .venv/bench
	@.venv/bench/bin/python -m pip install $(PIP_FLAGS) -c requirements-dev.txt -r requirements-bench.txt \
		build/wheel/*.whl
	@mv .venv/bench.began $@

endif

setup: $(foreach minor,$(MINORS),.venv/$(minor)/.installed) ## make the virtual environments, build, install
	@echo 'ready     $(foreach minor,$(MINORS),.venv/$(minor))'

demo: .venv/$(OLDEST)/.installed ## three real jobs on the standard library's sources: who wins, and by how much
	@$(PYTHON) examples/demo.py $(ARGS)

check: .venv/$(OLDEST)/.installed ## fmt, clippy, ruff, mypy, stubtest, and that each rule has a test
	@$(SUITE) check

test: setup ## check, then all tests of Rust and of every Python; ends with "N passed, N failed"
	@$(SUITE) test $(MINORS)

test-stdlib: setup ## CPython's own executor tests against the drop-ins, on every Python that has them
	@$(PYTHON) scripts/stdlib.py $(foreach minor,$(MINORS),.venv/$(minor)/bin/python)

stress: .venv/$(OLDEST)/.installed ## the concurrency and fault tests N=20 times in a row; LOAD=1 keeps all cores busy
	@$(SUITE) stress $(OLDEST) --rounds $(N) --load $(LOAD)

soak: .venv/$(OLDEST)/.installed ## the long campaigns: random faults for minutes, loom and properties at depth
	@$(SUITE) soak $(OLDEST)

bench: .venv/bench/.installed ## measure against the standard pools, loky, joblib and ray, into benches/RESULTS.md
	@.venv/bench/bin/python benches/bench.py $(ARGS)

bench-check: ## count the instructions of hot paths, against benches/instructions.json; UPDATE=1 rewrites it
	@$(call interpreter,$(OLDEST)) scripts/instructions.py --install $(if $(filter 1,$(UPDATE)),--update)

bench-lanes: .venv/bench/.installed ## auto against the best lane and size that could have been chosen, on labelled workloads
	@.venv/bench/bin/python benches/lanes/lanes.py $(ARGS)

clean: ## remove everything that make made
	rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	if command -v cargo >/dev/null; then cargo clean --quiet; fi
