# make demo: search, retraining and a prediction on the built-in corpus.   make test: the whole suite.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python search.py --name demo --config configs/demo.yaml --overwrite
	$(BIN)/python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo/genotype.json --overwrite
	$(BIN)/python scripts/predict.py runs/augment/demo .cache/synthetic-0/00_angry_00.wav

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'Python 3.10 or newer is needed: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-dask.txt requirements-onnx.txt requirements-encoders.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .cache
