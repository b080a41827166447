"""How ``vitrail serve`` ends: after the step in work, or at once at the second signal, and what it leaves."""

import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from command_line import start
from served import FOX, LONG, Served
from vitrail.cli import serve
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling import session
from vitrail.sampling.sampler import Sampler
from vitrail.serve.studio import Studio


@pytest.fixture
def studio(folder):
    studio = Studio(Sampler.from_pretrained(str(folder), "direct").backbone, str(folder))
    yield studio
    studio.close()


def interrupted(studio, said):
    """The exit code of a block that Ctrl-C ends."""
    try:
        with serve._closing(studio, Console(file=said)):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)
    except SystemExit as stop:
        return stop.code


def test_a_picture_in_work_is_left_without_decoding_what_nobody_will_see(studio, monkeypatch):
    monkeypatch.setattr(session.Session, "_decode", lambda *given: pytest.fail("it was decoded"))
    work, said = studio.begin(RunConfig(**LONG)), io.StringIO()
    while work.step == 0 and work.status == "running":
        time.sleep(0.005)
    assert interrupted(studio, said) == 130 and "stopping after the step in work; Ctrl-C again ends" in said.getvalue()
    assert (work.status, work.reason, work.shown) == ("stopped", "", None) and work.step < work.steps
    assert not studio._folder.exists()


def test_the_second_signal_ends_at_once_and_leaves_no_files(studio, monkeypatch):
    goes_on, ended, sample_on = threading.Event(), [], session.Session._sample_on

    def long(self, *given):
        goes_on.wait(60)
        return sample_on(self, *given)

    class Said(io.StringIO):
        """The second signal comes when the first one is answered."""

        def write(self, text):
            if "Ctrl-C again" in text:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return super().write(text)

    def end(code):
        ended.append((code, studio._folder.exists(), goes_on.is_set()))
        goes_on.set()

    monkeypatch.setattr(session.Session, "_sample_on", long)
    monkeypatch.setattr(serve.os, "_exit", end)
    studio.begin(RunConfig(**FOX))
    interrupted(studio, Said())
    assert ended == [(130, False, False)]


@pytest.mark.thorough
@pytest.mark.parametrize("signals", [1, 2])
def test_the_program_ends_as_docs_say(tmp_path, folder, signals):
    process = start(tmp_path, "serve", "--port", "0", "--model", folder)
    line = next(line for line in process.stdout if line.startswith("http"))
    port = int(line.rpartition(":")[2].strip(" /\n"))
    status, told = Served(None, port).post("/api/pictures", LONG | {"num_inference_steps": 900})
    assert status == 202, told
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Ctrl-C again" in line:
            break
    if signals == 2:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in out and not err
