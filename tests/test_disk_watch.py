"""A disk that refuses a checkpoint which Orbax, at a barrier, says nothing of."""

import tempfile
import threading

import pytest

from ldm_jax import peers
from ldm_jax.checkpoint.disk_watch import await_saved
from ldm_jax.errors import DiskError


class Saving:
    """What Orbax answers: an end that comes, or does not."""

    def __init__(self, error=None):
        self.ended, self._error = threading.Event(), error

    def result(self, timeout=None):
        if self._error:
            raise self._error
        if not self.ended.wait(timeout):
            raise TimeoutError


class GivenUp(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The checkpoints of a job of several processes."""

    def give_up(text, status):
        raise GivenUp(text, status)

    monkeypatch.setattr(peers, "several", lambda: True)
    monkeypatch.setattr(peers, "give_up", give_up)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def refuse(monkeypatch):
    """Makes a disk refuse some of the trials; returns how many there were."""

    def make(refuses, after=lambda trials: None):
        trials, open_file = [], tempfile.TemporaryFile

        def temporary_file(**options):
            trials.append(options)
            after(len(trials))
            if refuses(len(trials)):
                raise OSError(28, "No space left on device")
            return open_file(**options)

        monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
        return trials

    return make


def test_two_refusals_in_a_row_end_the_job(folder, refuse):
    trials = refuse(lambda trial: trial != 2)
    with pytest.raises(GivenUp) as given_up:
        await_saved(Saving(), folder, "the checkpoint of step 30 is intact", 0.01)
    text, status = given_up.value.args
    assert len(trials) == 4
    assert status == DiskError.exit_code
    assert text == (
        f"cannot write a checkpoint in {folder}: No space left on device; the "
        "checkpoint of step 30 is intact: make room, and the same command continues"
    )


def test_a_slow_disk_is_waited_for(folder, refuse):
    saving = Saving()
    trials = refuse(lambda trial: False, lambda n: n == 3 and saving.ended.set())
    await_saved(saving, folder, "none was saved", 0.01)
    assert len(trials) == 3
    assert not list(folder.iterdir())


def test_a_barrier_that_gave_up_is_an_answer(folder):
    with pytest.raises(TimeoutError, match="barrier"):
        await_saved(Saving(TimeoutError("a barrier")), folder, "none was saved", 1000)


def test_one_process_only_waits(monkeypatch, folder, refuse):
    monkeypatch.setattr(peers, "several", lambda: False)
    trials, saving = refuse(lambda trial: True), Saving()
    saving.ended.set()
    await_saved(saving, folder, "none was saved", 0.01)
    assert not trials
