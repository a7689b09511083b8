# Every target sets up .venv by itself. Override PYTHON to choose an interpreter (3.11 to 3.13) and TORCH to choose a
# PyTorch, for example TORCH="torch --index-url https://download.pytorch.org/whl/cpu".
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# Without an NVIDIA GPU a CPU build is enough: this version, with the Triton made for it, is taken where pip has one.
CPU_TORCH := torch==2.13.0 triton==3.7.1
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-full check lint format bench reproduce clean

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

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "eco-fast needs Python 3.11 to 3.13; name one with PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c "import torch" 2>/dev/null || { \
		torch="$(TORCH)"; \
		if [ -z "$$torch" ]; then torch=torch; \
			if ! nvidia-smi >/dev/null 2>&1 && $(BIN)/pip install --quiet --dry-run --no-deps --report - $(CPU_TORCH) \
				2>/dev/null | grep -q '"version": "[0-9.]*+cpu"'; then torch="$(CPU_TORCH)"; fi; \
		fi; \
		echo "installing $$torch"; $(BIN)/pip install --quiet $$torch; }
	$(BIN)/pip install --quiet -e ".[demo,dev,onnx]"
	@# spandrel without what its torchvision would bring: another PyTorch. torchvision 0.(n + 15) is made for PyTorch 2.n.
	vision=$$($(BIN)/python -c "import torch; print(int(torch.__version__.split('.')[1]) + 15)"); \
		$(BIN)/pip install --quiet --no-deps "torchvision==0.$$vision.*" "spandrel>=0.4.2,<0.5" einops \
		|| echo "spandrel could not be installed: its tests are skipped"
	@touch $(READY)
