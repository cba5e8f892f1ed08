# No activated environment is needed: every target calls .venv by path.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
INSTALLED := .venv/.installed
CPP := llamahome/native/csrc/*.cpp llamahome/native/csrc/*.h llamahome/native/csrc/*.inc
UV_VERSION := 0.13.9
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { echo $$p; break; }; done)
# uv does not read pip's variables; a machine with its own wheels sets PIP_FIND_LINKS.
FIND_LINKS := UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}"

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED)  ## .venv with every pinned dependency; quick when nothing changed

# uv, because it can correct what two packages wrongly ask for (tool.uv in pyproject.toml).
# UV_TORCH_BACKEND=cpu (or cu130, ...) picks a build of torch; unset, the registry's own is taken.
# --compile-bytecode, because Ray starts a dozen interpreters and each would compile everything.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "LlamaHome needs Python 3.11 or 3.12 on PATH; or: make install PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(FIND_LINKS) $(BIN)/uv pip install --python $(BIN)/python \
		--compile-bytecode -c constraints.txt -e '.[train,serve,eval,harness,dev]'
	$(BIN)/python -m llamahome.native
	@touch $@

.PHONY: quickstart
quickstart: install  ## fine-tune the embedded model under a KV budget, serve it, talk to it
	$(BIN)/python quickstart.py

# Debian's own where apt can install it, else Playwright's; nothing where there is one.
.PHONY: browser
browser: install  ## a headless Chromium, in which the page is tested
	@command -v chromium-headless-shell || command -v chromium || command -v google-chrome \
	|| { test "$$(id -u)" = 0 && apt-get update -qq \
	&& apt-get install -y -qq --no-install-recommends chromium-headless-shell; } \
	|| $(BIN)/playwright install --only-shell chromium

# One OpenMP thread: two programs that spin for each other's cores slow down ten times and more.
.PHONY: test
test: check browser  ## every check, the whole suite, and the coverage floors
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
	@$(BIN)/coverage report --include='llamahome/*' --fail-under=90
	@$(BIN)/coverage report --include='cluster/*' --fail-under=80
	@$(BIN)/coverage report --include='train/*' --fail-under=80
	@$(BIN)/coverage report --include='serve/*' --fail-under=80

.PHONY: check
check: install  ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# torch's CUDA packages are left out with torch: which of them belong to it depends on the machine.
.PHONY: lock
lock: install  ## new pins in constraints.txt, from pyproject.toml
	$(FIND_LINKS) $(BIN)/uv pip compile pyproject.toml --all-extras --no-emit-package torch \
		--python-version 3.11 --no-header --no-annotate --quiet > .venv/constraints.all
	head -n 2 constraints.txt > .venv/constraints.txt
	grep -vE '^(nvidia-|cuda-|triton)' .venv/constraints.all >> .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt

.PHONY: bench-quality
bench-quality: install  ## quality after training under eviction: one seed, at most 40 minutes
	$(BIN)/python -m benchmarks.quality

.PHONY: bench-engine
bench-engine: install  ## the engine and llama.cpp, vLLM, transformers: at most 40 minutes
	$(BIN)/python -m benchmarks.engine

.PHONY: soak
soak: install  ## 10,000 small requests through the engine, which must not leak
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak

.PHONY: bench-serve
bench-serve: install  ## cost of HTTP and Ray, beside llama.cpp's and vLLM's servers: at most 12 minutes
	$(BIN)/python -m benchmarks.serve --keep

.PHONY: chaos
chaos: install  ## kill each part of an endpoint under load, and count what is lost: 6 minutes
	$(BIN)/python -m benchmarks.chaos

.PHONY: test-chaos
test-chaos: install  ## kill, drain and stop parts of real endpoints, and check what clients see: 10 minutes
	$(BIN)/python -m pytest -m chaos tests/serve/test_chaos.py

.PHONY: clean
clean:  ## remove the environment and what the tools left
	rm -rf .venv *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
