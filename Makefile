# What a developer types. Every target works from a fresh clone with Python >= 3.11 and its venv module; the
# versions are the locked ones of requirements/, checked by hash.

PYTHON ?= python3
PY     := .venv/bin/python
STAMP  := .venv/.installed
ARGS   ?=
ONLY   ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test conformance-redis lint types bench wheel lock clean chaos chaos-long chaos-proof cluster mutants sim

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create .venv with the locked versions and this tree (editable)

$(STAMP): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	mkdir -p .links && ln -sfn ../cli .links/ffcli
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: venv ## Watch jobs survive a killed worker, on an embedded Valkey
	.venv/bin/ff demo $(ARGS)

test: venv ## Run the tests (ARGS="-k lease" narrows them)
	$(PY) -m tests $(ARGS)

# On a socket in a directory of its own, so that it disturbs no other server and none disturbs it.
conformance-redis: venv ## Run the conformance suite on Debian's redis-server (REDIS_SERVER=path for another)
	@server=$${REDIS_SERVER:-redis-server}; \
	command -v "$$server" >/dev/null || { echo "$$server not found: apt-get install redis-server, or set REDIS_SERVER" >&2; exit 1; }; \
	"$$server" --version; dir=$$(mktemp -d); \
	"$$server" --port 0 --unixsocket "$$dir/redis.sock" --dir "$$dir" --save '' --appendonly yes --appendfsync always \
	  --maxmemory-policy noeviction --logfile "$$dir/log" & pid=$$!; \
	trap 'kill $$pid 2>/dev/null; wait $$pid 2>/dev/null; rm -rf "$$dir"' EXIT; \
	for _ in $$(seq 100); do [ -S "$$dir/redis.sock" ] && break; sleep 0.1; done; \
	[ -S "$$dir/redis.sock" ] || { cat "$$dir/log" >&2; exit 1; }; \
	FF_TEST_URL="unix://$$dir/redis.sock" $(PY) -m pytest -q tests/conformance tests/lua $(ARGS)

lint: venv ## Check style: ruff, the tidy test, and luacheck where it is installed (Debian: lua-check)
	.venv/bin/ruff check .
	$(PY) -m pytest -q tests/test_tidy.py
	@if command -v luacheck >/dev/null; then \
	  luacheck --no-color -q --std lua51 --no-max-line-length --ignore 212 241 211/define 122/waitpoints 122/flow_check --globals partition budgets \
	    --read-globals redis cjson bit define LIMITS LIBRARY $$(sed -nE 's/^local ([a-z_]+) = \{.*/\1/p' lua/shared/*.lua | grep -v -e '^partition$$' -e '^budgets$$') \
	    -- lua; \
	else echo "luacheck is not installed: the Lua was checked by tests/test_tidy.py only"; fi

types: venv ## Check types: mypy and pyright on the rooms, then on the examples as a user's editor sees them
	.venv/bin/mypy
	.venv/bin/pyright --pythonpath $(PY)
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cp -r examples "$$dir/"; \
	printf '{"typeCheckingMode": "strict", "pythonVersion": "3.11"}\n' >"$$dir/pyrightconfig.json"; root=$$PWD; cd "$$dir"; \
	echo "a user's files, outside the tree:"; \
	"$$root/.venv/bin/mypy" --strict --explicit-package-bases --python-executable "$$root/$(PY)" examples && \
	"$$root/.venv/bin/pyright" --pythonpath "$$root/$(PY)" -p "$$dir"

chaos: venv ## Kill, stop and cut real processes for 4 minutes and prove that nothing was lost (ARGS="--seed 7")
	$(PY) -m tests.chaos $(ARGS)

chaos-long: venv ## The same at ten times the size
	$(PY) -m tests.chaos --long $(ARGS)

chaos-proof: venv ## Show that the chaos run notices a broken library (about 6 minutes)
	$(PY) -m pytest -q tests/chaos $(ARGS)

cluster: venv ## Run the tests on a Valkey Cluster of their own: failover, slot migration, what is lost (ARGS="-k migration")
	$(PY) -m pytest -q tests/cluster $(ARGS)

# SEED plays one run again and prints the hash of its keyspace; RUNS and STEPS set another budget.
sim: venv ## Simulate 288 seeded runs with faults at every call (SEED=7, RUNS=1000 STEPS=5000)
	$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED)) $(if $(RUNS),--runs $(RUNS)) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

mutants: venv ## Break the Lua on purpose, 260 ways, and see each noticed (ONLY=fence, ARGS=--list, ARGS=--all)
	$(PY) -m tests.mutants --only "$(ONLY)" $(ARGS)

bench: venv ## Measure: prints numbers and the machine, asserts nothing
	$(PY) -m bench $(ARGS)

wheel: venv ## Build the wheel, install it alone in a clean environment, run the demo from there
	$(PY) -m pytest -q tests/packaging $(ARGS)
	rm -rf dist && $(PY) -m hatchling build -t wheel -t sdist -d dist

lock: venv ## Resolve the dependencies anew into requirements/ (ARGS="--upgrade" for newer ones)
	@for set in run:embedded dev:dev; do \
	  .venv/bin/uv pip compile pyproject.toml --extra $${set#*:} --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header -q -o requirements/$${set%:*}.txt $(ARGS) || exit 1; \
	done

clean: ## Remove what was built and cached (not .flowfabric, which holds data)
	rm -rf .venv .links dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
