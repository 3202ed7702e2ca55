"""One run at a time in a folder: the loser's line, and what the dead leave behind."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import jax
import pytest

from ldm_jax import lock, peers
from ldm_jax.errors import WorkdirInUse
from ldm_jax.lock import FILE, Holder, hold, hold_outdir, require_held


@pytest.fixture
def quick(monkeypatch):
    """Signs of life come fast, and patience is short."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "DEAD", 0.3)


def write(folder, **changes):
    """Leaves the file of another run behind."""
    holder = dataclasses.replace(Holder.here(), **changes)
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(holder)))
    return folder / FILE


@contextlib.contextmanager
def living(path):
    """A holder elsewhere gives signs of life in its file."""
    ended = threading.Event()

    def live():
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def take(folder, override=False):
    """Takes the folder once, and says whose name stood in it."""
    with hold(folder, override):
        return json.loads((folder / FILE).read_text())["process"]


def test_a_folder_is_held_once_and_given_back(tmp_path):
    workdir = tmp_path / "new"
    with hold(workdir):
        with pytest.raises(WorkdirInUse) as error:
            take(workdir, override=True)
        text = str(error.value)
        assert f"process {os.getpid()} on " in text and " since 20" in text
        assert str(workdir) in text and "\n" not in text
        assert json.loads((workdir / FILE).read_text())["process"] == os.getpid()
    assert list(workdir.iterdir()) == []
    assert take(workdir) == os.getpid()


def test_another_process_that_runs_is_named(tmp_path):
    script = (
        "import sys, time; from ldm_jax.lock import hold\n"
        "with hold(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(WorkdirInUse, match=f"process {process.pid} on "):
            take(tmp_path)
        process.kill()
        # Not waited for: a zombie holds nothing.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert take(tmp_path) == os.getpid()
    finally:
        process.kill()
        process.communicate()


def test_the_number_of_a_dead_process_may_be_given_anew(tmp_path, capsys):
    write(tmp_path, began="1")
    assert take(tmp_path) == os.getpid()
    assert "note: the last run, process " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}'])
def test_a_file_cut_by_a_kill_holds_nothing(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert take(tmp_path) == os.getpid()


def test_a_silent_holder_elsewhere_is_waited_for(tmp_path, quick, capsys):
    write(tmp_path, host="far", machine="far boot")
    start = time.monotonic()
    assert take(tmp_path) == os.getpid()
    assert 0.2 < time.monotonic() - start < 5
    out = capsys.readouterr().out
    assert "is held by process" in out and "far since" in out
    assert "is taken for dead" in out


def test_a_holder_elsewhere_that_gives_signs_of_life_is_left_alone(
    tmp_path, quick, monkeypatch
):
    monkeypatch.setattr(lock, "DEAD", 30.0)
    with living(write(tmp_path, host="far", machine="far boot")):
        with pytest.raises(WorkdirInUse, match="sends heartbeats.*--take_workdir"):
            take(tmp_path)
    assert take(tmp_path, override=True) == os.getpid()


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_clock_elsewhere_that_goes_wrong_decides_nothing(tmp_path, quick, ahead):
    """Neither does a dead holder's hold for an hour, nor is a living one taken dead."""
    path, now = write(tmp_path, host="far", machine="far boot"), time.time() + ahead
    os.utime(path, (now, now))
    start = time.monotonic()
    assert take(tmp_path) == os.getpid()
    assert 0.2 < time.monotonic() - start < 5


def test_a_holder_touches_its_file(tmp_path, quick):
    with hold(tmp_path):
        os.utime(tmp_path / FILE, (1, 1))
        end = time.monotonic() + 5
        while os.stat(tmp_path / FILE).st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert os.stat(tmp_path / FILE).st_mtime > 2


def test_a_holder_that_stood_still_looks_before_it_writes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "BEAT", 60.0)
    monkeypatch.setattr(lock, "DEAD", 0.5)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with hold(tmp_path):
        require_held()
        time.sleep(0.3)
        # Nobody else has it, and that was a sign of life.
        require_held()
        write(tmp_path, host="far", machine="far boot")
        require_held()
        time.sleep(0.3)
        with pytest.raises(SystemExit) as error:
            require_held()
    assert error.value.code == WorkdirInUse.exit_code
    assert f"{tmp_path} was taken by process" in capsys.readouterr().err
    # It is the other's still.
    assert json.loads((tmp_path / FILE).read_text())["host"] == "far"


def test_one_of_many_that_start_at_once_wins(tmp_path):
    barrier, won, lost = threading.Barrier(8), [], []

    def run():
        barrier.wait()
        try:
            with hold(tmp_path):
                won.append(1)
                # Until all the others have tried.
                while len(lost) < 7:
                    time.sleep(0.001)
        except WorkdirInUse:
            lost.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(won), len(lost)) == (1, 7)
    assert not (tmp_path / FILE).exists()


def test_a_folder_of_output_names_its_own_flag(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "DEAD", 30.0)
    with living(write(tmp_path, host="far", machine="far boot")):
        with pytest.raises(WorkdirInUse, match="certainly ended: --take_outdir"):
            with hold_outdir(tmp_path):
                pass


def test_the_first_process_of_a_job_holds_a_folder_for_all(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(peers, "gather", lambda text: told.append(text) or [text] * 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with hold_outdir(tmp_path):
        assert not (tmp_path / FILE).exists()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with hold_outdir(tmp_path):
        assert (tmp_path / FILE).exists()
    assert not (tmp_path / FILE).exists()
    # None continues before the first one has it.
    assert len(told) == 2
