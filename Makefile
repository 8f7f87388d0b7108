# Two commands: `make demo` and `make test`. Both need git, make and Python 3.11 to 3.14; they fetch everything else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3

VENV := .venv
UV := $(VENV)/bin/uv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.synced

help:  ## what can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1|/' | column -t -s '|'

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		|| { echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is $$($(PYTHON) -V): set PYTHON=python3.12, say" >&2; exit 2; }
	@echo "fetching uv ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --require-hashes --no-deps -r tools/uv.txt

$(STAMP): constraints.txt $(UV)
	@echo "installing what the tests need ..."
	@$(UV) pip sync --quiet --python $(PY) --require-hashes constraints.txt
	@touch $@

env: $(STAMP)  ## the environment of the tests, exactly as constraints.txt pins it

demo: $(STAMP)  ## render a project, install it, chat with it, call it, and talk to it in a browser
	@$(PY) tools/demo.py

static: $(STAMP)
	@$(PY) tools/check.py --static

check: $(STAMP)  ## format, lint, types, and the tests of the agent in place: two minutes
	@$(PY) tools/check.py

# More processes than cores: a call waits for its speech longer than it computes.
PYTEST := $(PY) -m pytest -n $$(( 2 * $$(nproc 2>/dev/null || echo 2) )) --dist loadgroup

test: static  ## what CI runs: every test that needs no long wait
	@$(PY) -m tests.support.server
	@$(PY) -m tests.support.browser
	@$(PYTEST) -m "not slow"

test-all: static  ## everything: the slow ends, and all ends once more with PostgreSQL and Redis
	@$(PY) -m tests.support.server
	@$(PY) -m tests.support.sip
	@$(PY) -m tests.support.browser
	@$(PYTEST) --ignore tests/call/test_soak.py
	@$(PYTEST) tests/call/test_soak.py
	@ENDS_STORES=pgvector-redis $(PYTEST) tests/call/test_ends.py tests/call/test_slow_ends.py

telephone: $(STAMP)  ## calls by a real telephone, in and out; builds livekit-sip once, in minutes
	@$(PY) -m tests.support.server
	@$(PY) -m tests.support.sip
	@$(PYTEST) tests/call/test_telephone.py tests/call/test_outbound.py tests/call/test_trunks.py

canary: $(STAMP)  ## real calls with the lowest and the newest livekit-agents that a project takes
	@$(PY) -m tests.support.server
	@$(PY) tools/canary.py

bench: $(STAMP)  ## measure: copies and updates, first audio, free slots, weight, every end in six shapes of an entrypoint: more than 20 minutes
	@$(PY) -m benchmarks.copies
	@$(PY) -m benchmarks.weight
	@$(PY) -m benchmarks.updates
	@$(PY) -m benchmarks.run
	@$(PY) -m benchmarks.ends
	@$(PY) -m benchmarks.shapes
	@$(PY) -m benchmarks.plots

bench-parts: export PYTHONPATH := template/src
bench-parts: $(STAMP)  ## measure: documents and memory, by themselves and in calls, healthy and stalled: 40 minutes
	@$(PY) -m benchmarks.knowledge
	@$(PY) -m benchmarks.knowledge_sections
	@$(PY) -m benchmarks.knowledge_pair
	@$(PY) -m benchmarks.turns
	@$(PY) -m benchmarks.writes
	@$(PY) -m benchmarks.plots

bench-long: $(STAMP)  ## measure: 1,000 calls through one worker, and workers restarted while people call: 20 minutes
	@$(PY) -m benchmarks.soak; soak=$$?; $(PY) -m benchmarks.rolling && rolling=0 || rolling=1; \
		$(PY) -m benchmarks.plots && exit $$(( soak | rolling ))

ownership: $(STAMP)  ## write template/.template.toml.jinja again after files were added, changed or removed
	@$(PY) tools/ownership.py

page: $(STAMP)  ## build the script of the page of `agent talk` from web/ into the template; needs node and npm
	@$(PY) -m tests.support.npm
	@cd web && npm run --silent types && npm run --silent build

pictures: $(STAMP)  ## every state of the page, and the dashboard, in docs/pictures/; needs chromium and Prometheus
	@$(PY) tools/pictures.py
	@PYTHONPATH=template/src:. $(PY) tools/dashboard.py

example: $(STAMP)  ## the default project of HEAD, on the branch example of this repository
	@$(PY) tools/example.py

history: $(STAMP)  ## DIR=folder: a git repository of every release, the work tree as v999.0.0
	@$(PY) tools/history.py "$(DIR)"

release: check  ## VERSION=1.2.3: add the work tree to the released templates
	@$(PY) tools/release.py "$(VERSION)"

constraints: $(UV)  ## resolve and pin the test environment again
	@$(UV) pip compile --quiet --group dev --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --output-file constraints.txt pyproject.toml
	@grep -A 40 '^uv==' constraints.txt | awk 'NR > 1 && !/^ /{exit} {print}' > tools/uv.txt

clean:  ## forget the environment
	@rm -rf $(VENV)

.PHONY: help env demo static check test test-all telephone canary bench bench-parts bench-long ownership page pictures example history release constraints clean
