# Every target sets up .venv by itself. Override PYTHON to choose an interpreter (3.11 to 3.13) and TORCH to choose a
# PyTorch, for example TORCH="torch --index-url https://download.pytorch.org/whl/cpu".
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# Without an NVIDIA GPU a CPU build is enough: this version, with the Triton made for it, where pip has one, else the
# newest of PyTorch's own index.
CPU_TORCH := torch==2.13.0 triton==3.7.1
INDEX := https://download.pytorch.org/whl
BIN := .venv/bin
READY := .venv/.ready

.PHONY: install demo test test-full check lint format bench reproduce clean

install: $(READY)
	@echo "installed; next: source .venv/bin/activate; eco-fast doctor; eco-fast demo"

demo: $(READY)
	$(BIN)/eco-fast demo --out runs/demo --force

test: $(READY)
	$(BIN)/python -m pytest -q -m "not full"

test-full: $(READY)
	$(BIN)/python -m pytest -q

check: lint
	$(BIN)/python -m pytest -q -m "not slow and not full"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/eco-fast bench all --out runs/bench

# The paper's figures at CPU scale; needs the folder named by ECO_FAST_TESTDATA, and hours.
reproduce: $(READY)
	for figure in figure_3 table figure_5 figure_4 figure_2; do \
		$(BIN)/python -m benchmarks.reproduce.$$figure || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info

# pip shows what it downloads on a terminal, and is silent in a log.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "eco-fast needs Python 3.11 to 3.13; name one with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || { echo "1 of 4: .venv, by $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@test -t 1 || quiet=--quiet; \
	$(BIN)/python -c "import torch" 2>/dev/null || { \
		torch="$(TORCH)"; \
		if [ -z "$$torch" ]; then torch=torch; \
			nvidia-smi >/dev/null 2>&1 || for build in "$(CPU_TORCH)" "torch --index-url $(INDEX)/cpu"; do \
				if $(BIN)/pip install --quiet --dry-run --no-deps --retries 0 --timeout 5 --report - $$build 2>/dev/null \
					| grep -q '"version": "[0-9.]*+cpu"'; then torch="$$build"; break; fi; \
			done; \
		fi; \
		echo "2 of 4: $$torch; 200 MB for CPUs, 3 GB for NVIDIA GPUs"; $(BIN)/pip install $$quiet $$torch; }
	@test -t 1 || quiet=--quiet; \
	echo "3 of 4: eco-fast and its extras; the largest is NVIDIA DALI, 300 MB"; \
	$(BIN)/pip install $$quiet -e ".[dali,demo,dev,onnx,tensorboard]"
	@# Without dependencies: those of its torchvision are another PyTorch. torchvision 0.(n + 15).m is made for PyTorch 2.n.m, and
	@# PyPI's for that of PyPI: where the one for another build (+cpu, +cu130) is not found either, PyPI's has to do.
	@test -t 1 || quiet=--quiet; \
	echo "4 of 4: spandrel, for more networks"; \
	set -- $$($(BIN)/python -c "import torch, re; v = torch.__version__; \
		n, m = re.match('2.([0-9]+).([0-9]+)', v).groups(); print(f'0.{int(n) + 15}', m, v.partition('+')[2])"); \
	{ test -n "$$3" && $(BIN)/pip install --quiet --no-deps --retries 0 --timeout 5 "torchvision==$$1.$$2+$$3" \
		--extra-index-url $(INDEX)/$$3 2>/dev/null || $(BIN)/pip install $$quiet --no-deps "torchvision==$$1.*"; } \
	&& $(BIN)/pip install $$quiet --no-deps "spandrel>=0.4.2,<0.5" einops \
	&& $(BIN)/python -c "from eco_fast.models import build; build('swinir-light', 2); \
		from importlib.metadata import version as v; print('spandrel', v('spandrel'), 'works, with torchvision', v('torchvision'))" \
	|| echo "spandrel does not work here: its networks cannot be used and their tests fail or are skipped; all else works"
	@touch $(READY)
