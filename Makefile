# `make quickstart` and `make test`, each from nothing; PYTHON=... chooses another interpreter (3.11 or newer).
# The newest that runs and can make an environment: a name may be there that refuses to start, as a shim of pyenv does.
RUNS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c '$(RUNS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# In the order of tests/conftest.py: what takes long first.
WORKERS := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
TRAIN_PROMPTS := "beating heart" "pizza" "cat face" "rocket" "sunflower" "soccer ball" "red apple" "police car"
# Of the split `compositions`: never trained on, though their parts were, in other pictures.
HELD_OUT_PROMPTS := "woman astronaut, medium-light skin tone" "man farmer" "man zombie" "woman getting haircut" \
	"man technologist" "man fairy, dark skin tone" "waving hand, medium-light skin tone" "woman farmer, medium-dark skin tone"

.PHONY: quickstart test test-oldest test-slow mutants lint docs clean

quickstart: .venv/installed
	@rm -rf quickstart/train
	$(BIN)/infinity-jax prepare
	$(BIN)/infinity-jax sample $(TRAIN_PROMPTS) $(HELD_OUT_PROMPTS) --out quickstart/samples
	$(BIN)/infinity-jax train --config configs/emoji.py --workdir quickstart/train \
		--config.train.init_from=bundled --config.train.steps=30 --config.train.log_every=5
	@echo "pictures: quickstart/samples/sheet.png (the last 8 prompts were never trained on)"
	@echo "training: quickstart/train (metrics.jsonl, checkpoints); the same train command resumes there"
	@echo "data:     $${INFINITY_DATA:-$$HOME/.cache/infinity_jax}"

test: .venv/installed-test
	INFINITY_CHECK_TYPES=0 $(BIN)/python -m pytest -q $(WORKERS) -m 'long and not slow'
	$(BIN)/python -m pytest -q $(WORKERS) -m 'not long and not slow'

# What CI runs on the oldest Python and jax: what takes not long of the rooms that use most of jax.
OLDEST := $(addprefix tests/, runtime tokenizer transformer sampling checkpoints)
test-oldest: .venv/installed-test
	$(BIN)/python -m pytest -q $(WORKERS) $(OLDEST) -m 'not slow and not long'

# One after the other: each may take some GiB of memory.
test-slow: .venv/installed-test
	$(BIN)/python -m pytest -q -m slow

# Plants small errors, one at a time, and says which no test notices; goes on where it stopped. See docs/design/mutants.md.
mutants: .venv/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	$(BIN)/python experiments/mutants.py planted --out out/planted.jsonl
	$(BIN)/python experiments/mutants.py sampled --out out/mutants.jsonl

lint: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml

# The site goes into site/; a broken link is an error.
docs: .venv/installed-docs
	$(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,tpu]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv quickstart site
