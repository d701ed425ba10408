# All that a newcomer runs. Needs git, make (GNU make 3.81 or newer) and python3 (3.11 to 3.13), nothing else.

PYTHON = python3
RUN = .venv/bin/python
# Which tests: make test TESTS=tests/test_regtest_world.py
TESTS = tests
# Which benchmarks, all if empty: make bench BENCH='transfer pages'
BENCH =
# Literally what was given: names may hold spaces, quotes and dollars, so the shell must never see them.
DEMO_FILE := $(value FILE)
export DEMO_FILE
unexport FILE

help:
	@echo 'make demo    sell and buy a file on a real bitcoin node (FILE=path takes yours)'
	@echo 'make serve   a server with sample data, left running to play with'
	@echo 'make test    all tests (TESTS=path runs some)'
	@echo 'make screens a picture of every page in every state (build/screens)'
	@echo 'make bench   measure, side by side with others, into docs/PERFORMANCE.md (BENCH=transfer runs one)'
	@echo 'make soak-drill  ten sellers, a hundred buyers and random faults; then the books (SECONDS=600 SEED=n)'
	@echo 'make soak-payouts  hosted sales, payouts and refunds under faults; then the books (SECONDS=600 SEED=n)'
	@echo 'make soak-channel  metered payments under SIGKILL, reorgs and refunds; then the books (PAYMENTS=5000 SEED=n)'
	@echo 'make soak-crash  SIGKILL at every commit point of a sale and of a payout, then all goes on (SEED=n)'
	@echo 'make soak-fuzz   requests, forms, tokens, links, blocks that nobody sane would send (CASES=12000 SEED=n)'
	@echo 'make soak-pages  every page and state, in every language, theme and width'
	@echo 'make check   formatting, lint, types, and which package may use which'
	@echo 'make format  mend formatting and what the linter can mend'
	@echo 'make vectors write the test vectors anew'
	@echo 'make clean   remove what the above have made; make distclean: .venv too'

demo: .venv/installed-runtime
	@$(RUN) -m regtest.demo

serve: .venv/installed-runtime
	@$(RUN) -m regtest.serve

test: .venv/installed-dev
	$(RUN) -m pytest -n 3 --dist worksteal $(TESTS)

screens: .venv/installed-dev
	@$(RUN) -m tests.page_tour

bench: .venv/installed-dev
	@$(RUN) -m bench $(BENCH)

soak-drill: .venv/installed-dev
	@SECONDS='$(SECONDS)' SEED='$(SEED)' $(RUN) -m tests.drill

soak-payouts: .venv/installed-dev
	@SECONDS='$(SECONDS)' SEED='$(SEED)' $(RUN) -m tests.payout_soak

soak-channel: .venv/installed-dev
	@PAYMENTS='$(PAYMENTS)' SEED='$(SEED)' $(RUN) -m tests.channel_soak

soak-crash: .venv/installed-dev
	SOAK_CRASH=1 SEED='$(SEED)' $(RUN) -m pytest -s tests/functional_crash_points.py tests/functional_payouts_crash.py

soak-fuzz: .venv/installed-dev
	$(RUN) -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED))

soak-pages: .venv/installed-dev
	SOAK_PAGES=1 $(RUN) -m pytest tests/functional_pages_tour.py

check: .venv/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

format: .venv/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

vectors: .venv/installed-dev
	@for maker in tests/vectors/make_*.py; do echo "$$maker"; $(RUN) "$$maker" || exit 1; done

venv: .venv/installed-dev

.venv/installed-runtime: pyproject.toml constraints.txt
	@$(PYTHON) regtest/bootstrap.py

.venv/installed-dev: pyproject.toml constraints.txt
	@$(PYTHON) regtest/bootstrap.py --dev

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf .venv

.PHONY: help demo serve test screens bench soak-drill soak-payouts soak-channel soak-crash soak-fuzz soak-pages check format vectors venv clean distclean
