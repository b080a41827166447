"""What a forward needs, what is free, and how many rows that makes."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from attrs import evolve

from tiny_families import FAMILIES
from vitrail import hookimpl
from vitrail.backbones.memory import free_memory
from vitrail.backbones.memory.footprint import LiveBytes, row_bytes
from vitrail.backbones.memory.forecast import CHOICES, SHARE, absent_bytes, forecast, resolve
from vitrail.comm.backends.in_process import solo
from vitrail.core.config.run_config import ROW_BATCH, RunConfig
from vitrail.errors import CapabilityError
from vitrail.experiments.run.peak_memory import STATM
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

GB = 10**9


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A tiny real pipeline of each family."""
    return FAMILIES[request.param]()


# ---------------------------------------------------------------- what a forward needs


class Meter:
    """Measures the tensors of every forward of a run, weights and inputs aside."""

    def __init__(self):
        self.peaks = {}

    @hookimpl(wrapper=True)
    def vitrail_predict(self, rows):
        with LiveBytes() as live:
            answer = yield
        self.peaks.setdefault(len(rows.views), []).append(live.peak)
        return answer


@pytest.mark.parametrize("size", [64, 96])
def test_prediction_agrees_with_real_forwards(family, size):
    """Within a twentieth; measured within a fiftieth."""
    meter = Meter()
    sampler = Sampler.from_pipeline(family, load_method("direct"), plugins=[("meter", meter)])
    call = {"height": size, "width": size, "num_inference_steps": 2, "output_type": "latent"}
    for row_batch in (1, 2):
        sampler("a fox", row_batch=row_batch, guidance_scale=3.0, **call)
    tokens = family.tokenizer.model_max_length + (0 if hasattr(family, "unet") else 256)
    predicted = row_bytes(sampler.backbone.network, (size // 8, size // 8), tokens)
    for rows, (_, *peaks) in meter.peaks.items():  # the first forward encodes the text, too
        assert 0.95 < rows * predicted / max(peaks) < 1.05, (rows, predicted, peaks)


def test_prediction_allocates_nothing_and_leaves_the_network_alone(family):
    network = Sampler.from_pipeline(family, load_method("direct")).backbone.network
    before = {name: (each.data_ptr(), each.dtype) for name, each in network.named_parameters()}
    with LiveBytes() as live:
        row_bytes(network, (40, 40))
    assert live.peak == 0 or live.now < 10**5
    assert {name: (each.data_ptr(), each.dtype) for name, each in network.named_parameters()} == before


def test_prediction_grows_with_cells_and_not_with_their_square():
    """The matrix of attention scores is never there: four times the cells are four times the memory."""
    network = FAMILIES["sd"]().unet
    small, large = (row_bytes(network, (side, side)) for side in (32, 64))
    assert 3.9 < large / small < 4.1


def test_half_the_type_is_half_the_memory():
    network = FAMILIES["sd"]().unet
    whole = row_bytes(network, (8, 8))
    assert 0.45 < row_bytes(network.half(), (8, 8)) / whole < 0.55


def test_an_unknown_network_is_not_guessed(pipe):
    with pytest.raises(CapabilityError, match="what a forward of AutoencoderKL needs is not known"):
        row_bytes(pipe.vae, (8, 8))


# ---------------------------------------------------------------- what is free


def fake_system(monkeypatch, root, meminfo="", own="", **files):
    (root / "meminfo").write_text(meminfo)
    (root / "cgroup").write_text(own)
    for name, text in files.items():
        path = root / "groups" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("_", ".", 1)).write_text(text)
    monkeypatch.setattr(free_memory, "MEMINFO", root / "meminfo")
    monkeypatch.setattr(free_memory, "OWN_GROUPS", root / "cgroup")
    monkeypatch.setattr(free_memory, "GROUPS", root / "groups")


CPU = torch.device("cpu")
INFO = "MemTotal:       16000 kB\nMemFree:         100 kB\nMemAvailable:    8000 kB\n"


def test_free_memory_of_the_system(monkeypatch, tmp_path):
    fake_system(monkeypatch, tmp_path, INFO)
    assert free_memory.free_bytes(CPU) == 8000 * 1024


def test_free_memory_of_a_container(monkeypatch, tmp_path):
    fake_system(monkeypatch, tmp_path, INFO, memory_max="5000000", memory_current="3000000")
    assert free_memory.free_bytes(CPU) == 2000000
    (tmp_path / "groups/memory.stat").write_text("anon 5\ninactive_file 700000\n")
    assert free_memory.free_bytes(CPU) == 2700000
    (tmp_path / "groups/memory.max").write_text("max\n")
    assert free_memory.free_bytes(CPU) == 8000 * 1024


def test_free_memory_of_a_batch_job_is_that_of_its_tightest_group(monkeypatch, tmp_path):
    files = {"job__memory_max": "900000", "job__memory_current": "500000", "job__step__memory_max": "max"}
    fake_system(monkeypatch, tmp_path, INFO, "0::/job/step\n", **files)
    assert free_memory.free_bytes(CPU) == 400000


def test_where_nobody_says_what_is_free_it_is_not_known(monkeypatch, tmp_path):
    fake_system(monkeypatch, tmp_path)
    assert free_memory.free_bytes(CPU) is None


def test_this_machine_has_some(monkeypatch):
    free = free_memory.free_bytes(CPU)
    assert free is None or 10**7 < free < 10**15


# ---------------------------------------------------------------- how many rows


class Elsewhere:
    """A backbone as it would be on another device; only where it runs is different."""

    def __init__(self, backbone, device):
        self.network, self.device = backbone.network, device


@pytest.fixture
def case(pipe):
    """A plan of 9 windows with two branches, and its backbone."""
    sampler = Sampler.from_pipeline(pipe, load_method("multidiffusion"))
    run = RunConfig(prompt="", height=128, width=128, num_inference_steps=3)
    return run, sampler.run_plan(run, 0), sampler.backbone


def given_free(monkeypatch, count):
    monkeypatch.setattr("vitrail.backbones.memory.forecast.free_bytes", lambda device: count)


def need(case, rows):
    _, _, backbone = case
    return rows * row_bytes(backbone.network, (8, 8))


def test_on_the_cpu_four_rows_unless_memory_is_short(monkeypatch, case):
    run, plan, backbone = case
    for free, rows in ((100 * GB, 4), (need(case, 4) / SHARE + 9, 4), (need(case, 3) / SHARE, 2), (9, 1), (None, 4)):
        given_free(monkeypatch, free)
        assert forecast(plan, backbone, 1).rows == rows
        assert resolve(run, plan, solo(), backbone).row_batch == rows


def test_on_the_cpu_the_number_does_not_depend_on_ranks_but_for_memory_they_share(monkeypatch, case):
    _, plan, backbone = case
    given_free(monkeypatch, GB)
    assert [forecast(plan, backbone, ranks).rows for ranks in (1, 2, 8, 32)] == [ROW_BATCH] * 4
    given_free(monkeypatch, need(case, 4) / SHARE + 9)
    assert [forecast(plan, backbone, ranks).rows for ranks in (1, 2)] == [4, 2]


def test_on_an_accelerator_as_many_as_fit_and_leave_work_for_all_ranks(monkeypatch, case):
    _, plan, backbone = case
    away = Elsewhere(backbone, torch.device("meta"))
    weights = absent_bytes(backbone.network, away.device)
    assert weights == sum(p.numel() * p.element_size() for p in backbone.network.parameters())
    for rows in CHOICES:
        given_free(monkeypatch, weights + need(case, rows) / SHARE + 9)
        assert forecast(plan, away, 1).rows == rows
    given_free(monkeypatch, 100 * GB)
    assert [forecast(plan, away, ranks).rows for ranks in (1, 2, 4, 6, 18, 40)] == [16, 8, 4, 2, 1, 1]


def test_a_number_that_was_given_stays(monkeypatch, case):
    run, plan, backbone = case
    given_free(monkeypatch, 9)
    run = evolve(run, row_batch=7)
    assert resolve(run, plan, solo(), backbone) is run
    told = forecast(plan, backbone, 1, 7)
    assert (told.rows, told.free_bytes, told.need_bytes) == (7, 9, need(case, 7))


def test_a_backbone_without_a_network_takes_the_usual_number(case):
    _, plan, _ = case
    assert forecast(plan, SimpleNamespace(network=None), 1).rows == ROW_BATCH


# ---------------------------------------------------------------- what a picture took

PEAKS = """
import gc, torch
from vitrail.experiments.run.peak_memory import Peak

class Cycle:
    def __init__(self):
        self.me, self.held = self, torch.ones(20_000_000)

Cycle()
with Peak.watch(torch.device("cpu")) as found:
    gc.collect()
    held = torch.ones(20_000_000)
print(found.bytes / held.nbytes)
del held

above = []  # what lies above freed memory keeps the C library from giving it back by itself
for _ in range(3):
    with Peak.watch(torch.device("cpu")) as found:
        held = [torch.ones(10_000) for _ in range(1000)]
        above.append(torch.ones(10_000))
    print(found.bytes / sum(each.nbytes for each in held))
    del held
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not STATM.exists(), reason="needs glibc on Linux")
def test_equal_work_has_equal_peaks_whatever_went_before():
    """Run in a process of its own: what other tests leave behind may be freed during a block, and looks like less."""
    said = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    after_garbage, *peaks = map(float, said.stdout.split())
    assert after_garbage > 0.9
    assert len(peaks) == 3 and 0.9 < min(peaks) <= max(peaks) < 1.5, peaks
