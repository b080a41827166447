# Two commands do all the set-up on a fresh machine with Python 3.11 or newer:
#   make demo   one sentence, one 512x512 picture, with the model that ships inside
#   make test   the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

OLD := .venv-oldest
OLD_TESTS := $(addprefix tests/integration/test_,family_parity.py loading.py user_pipelines.py control.py sampler.py \
	diffusers_calls.py sample_block.py)

.PHONY: demo test lint types long oldest gallery docs wheel clean

demo: $(READY)
	$(BIN)/vitrail sample "a fox on a snow field" --size 512 --method asg-cascade --seed 7 -o fox.png --force

# Three workers, also on two cores: tests of ranks wait for most of their time.
test: $(READY) $(VENV)/.example
	$(BIN)/python -m pytest -n 3 --dist worksteal

long: $(READY) $(VENV)/.example
	VITRAIL_PROFILE=long $(BIN)/python -m pytest

# The oldest diffusers that is served, on the tests that touch it most; what its libraries warn of is not ours, a tiny
# T5 cannot be built with them nor a text be encoded in double precision (the panorama), its hub wants the name of a LoRA's
# file, and another contrast comes from other weights.
oldest: $(OLD)/.ready
	$(OLD)/bin/python -m pytest -W ignore $(OLD_TESTS) \
		-k "not t5 and not accelerate and not lora_from_a_folder and not guidance_rescale and not panorama"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The site, in build/site; a link or reference that leads nowhere ends it.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/site-trees docs build/site

# The source archive, and the wheel from it alone, in dist/.
wheel: $(READY)
	$(BIN)/python tools/build_wheel.py --out dist

gallery: $(READY)
	$(BIN)/vitrail run experiments/gallery.toml
	$(BIN)/python tools/build_gallery.py

# torch first and alone: its version decides whether pip takes a CPU build or gigabytes of another one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,lint]"
	touch $@

$(OLD)/.ready: pyproject.toml constraints-oldest.txt
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install -q -c constraints-oldest.txt torch
	$(OLD)/bin/python -m pip install -q -c constraints-oldest.txt -e ".[test]"
	touch $@

$(VENV)/.example: $(READY) examples/vitrail-example/pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps -e examples/vitrail-example
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(OLD) build dist src/*.egg-info
