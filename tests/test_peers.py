"""One process of several fails, is killed, hangs or never comes: what the others do."""

import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ldm_jax import peers
from ldm_jax.cli import cluster
from ldm_jax.errors import ConfigError, ProcessLost
from ldm_jax.peers import Peers

ROOT = pathlib.Path(__file__).parent.parent


class Store:
    """A key-value store as JAX's coordination service has it."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()
        self.answers, self.at_end = True, threading.Event()

    def key_value_set(self, key, value, allow_overwrite=False):
        self._check()
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, prefix):
        self._check()
        with self.changed:
            return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    def blocking_key_value_get(self, key, milliseconds):
        self._check()
        with self.changed:
            if self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                return self.values[key]
        raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")

    def wait_at_barrier(self, name, milliseconds):
        self.at_end.wait(milliseconds / 1000)

    def _check(self):
        if self.answers == "never":
            time.sleep(60)
        if not self.answers:
            raise RuntimeError("UNAVAILABLE: socket closed")


class Job:
    """Processes of one job as threads; `ends` says with what status each has ended."""

    def __init__(self, count, hang_timeout=0.0):
        self.store, self.ends = Store(), {}
        self.processes = [
            Peers(self.store, index, count, hang_timeout, self._leave(index))
            for index in range(count)
        ]

    def _leave(self, index):
        return lambda status: self.ends.setdefault(index, status)

    def wait(self, indices):
        end = time.monotonic() + 10
        while not self.ends.keys() >= set(indices) and time.monotonic() < end:
            time.sleep(0.005)
        return self.ends

    def kill(self, index):
        """The process gives no signs of life any more, and reads nothing."""
        self.processes[index]._ended.set()

    def close(self):
        for process in self.processes:
            process._ended.set()


@pytest.fixture
def start(monkeypatch):
    """Makes jobs in which all goes fast, and ends them."""
    monkeypatch.setattr(peers, "BEAT", 0.02)
    monkeypatch.setattr(peers, "SILENT", 1.0)
    jobs = []

    def make(*arguments):
        jobs.append(Job(*arguments))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_others_end_with_the_message_of_the_one_that_fails(start, failing, capsys):
    job = start(3)
    job.processes[failing].fail("cannot read x.png", 3)
    assert job.wait(range(3)) == {0: 3, 1: 3, 2: 3}
    # Process 0, in which the message is kept, goes last.
    assert list(job.ends)[-1] == 0
    lines = capsys.readouterr().err.splitlines()
    host = socket.gethostname()
    expected = f"error: process {failing} of 3 on {host} failed: cannot read x.png"
    assert lines == [expected] * 2


def test_a_killed_process_is_missed(start, capsys):
    job = start(3)
    time.sleep(0.1)
    job.kill(1)
    assert job.wait([0, 2]) == {0: ProcessLost.exit_code, 2: ProcessLost.exit_code}
    err = capsys.readouterr().err
    assert "error: process 1 of 3 on" in err and "no heartbeat for 1 s" in err


def test_an_error_that_comes_of_a_lost_process_waits_for_its_cause(start, capsys):
    job = start(2)
    time.sleep(0.1)
    job.kill(1)
    # What the collective of the survivor says.
    job.processes[0].await_cause("Gloo AllGather failed: Connection closed by peer")
    assert job.wait([0]) == {0: ProcessLost.exit_code}
    assert "process 1 of 2" in capsys.readouterr().err


def test_an_error_that_comes_of_an_end_that_a_thread_tells_waits_for_it(start):
    job = start(2)
    job.kill(1)
    asked = threading.Thread(target=job.processes[0].fail, args=("asked to stop", 143))
    asked.start()
    while not job.processes[0]._ended.is_set():
        time.sleep(0.001)
    assert not job.ends
    job.processes[0].await_cause("Gloo AllGather failed: Connection closed by peer")
    assert job.ends == {0: 143}
    asked.join()


def test_without_a_cause_such_an_error_counts_itself(start):
    job = start(2)
    job.processes[1].await_cause("NCCL failed")
    assert not job.ends
    job.processes[1].fail("NCCL failed", 1)
    assert job.wait([0, 1]) == {0: 1, 1: 1}


def test_silence_after_the_end_is_no_fault(start):
    job = start(2)
    job.processes[0].stop()
    time.sleep(0.1)
    job.store.answers = False
    time.sleep(1.5)
    assert not job.ends


@pytest.mark.parametrize("answers", [False, "never"])
def test_process_0_does_not_answer(start, capsys, monkeypatch, answers):
    """It refuses, or a network that is gone lets all that is asked wait."""
    monkeypatch.setattr(peers, "_READ", 0.1)
    job = start(2)
    job.kill(0)
    job.store.answers = answers
    assert job.wait([1]) == {1: ProcessLost.exit_code}
    err = capsys.readouterr().err
    assert err == "error: process 0 of 2 failed: it has not answered for 1 s\n"


def test_a_fault_ends_a_process_that_cannot_tell_the_others(start, monkeypatch):
    monkeypatch.setattr(peers, "_READ", 0.1)
    job = start(2)
    job.store.answers = "never"
    job.processes[1].fail("cannot read x.png", 3)
    assert job.ends == {1: 3}


def test_an_abort_of_jax_is_a_line_and_a_status(start, capsys):
    job = start(2)
    job.processes[1].abort()
    assert job.ends == {1: ProcessLost.exit_code}
    assert capsys.readouterr().err.startswith("error: JAX has ended this process")


@pytest.mark.parametrize("abort", ["_libc.abort()", "os.kill(os.getpid(), 6)"])
def test_an_abort_of_another_kind_is_one(abort):
    """Of a thread of Python's, as where XLA's own checks fail."""
    text = (
        "import os, signal\nfrom ldm_jax.peers import _aborted, _libc\n"
        f"_libc.signal(signal.SIGABRT, _aborted)\n{abort}\nprint('continues')"
    )
    command = [sys.executable, "-c", text]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == -signal.SIGABRT
    assert not found.stdout and "File" in found.stderr


def test_an_abort_does_not_hide_what_came_before(start, capsys, monkeypatch):
    """Process 0 leaves soon after it has said why, and its service with it."""
    monkeypatch.setattr(peers, "_READ", 0.1)
    job = start(2)
    job.store.answers = "never"
    job.processes[1].fail("cannot read x.png", 3)
    job.processes[1].abort()
    assert job.ends == {1: 3}
    assert not capsys.readouterr().err


def test_a_hang_says_how_far_each_has_come(start, capsys):
    job = start(2, 0.3)
    for index, process in enumerate(job.processes):
        process.progress(8 - index)
    assert set(job.wait(range(2)).values()) == {ProcessLost.exit_code}
    err = capsys.readouterr().err
    assert "error: no process has finished a step for" in err
    assert "steps done: process 0: 8, process 1: 7" in err


def test_a_hang_before_the_first_step_and_after_the_last_is_one(start, capsys):
    assert set(start(2, 0.2).wait(range(2)).values()) == {ProcessLost.exit_code}
    job = start(2, 0.2)
    for process in job.processes:
        with process.saving(lambda: None):
            process.progress(8)
    assert set(job.wait(range(2)).values()) == {ProcessLost.exit_code}
    err = capsys.readouterr().err
    assert "process 0: none yet, process 1: none yet" in err
    assert "process 0: 8, process 1: 8" in err


def test_progress_is_no_hang(start):
    job = start(2, 0.2)
    for _ in range(20):
        job.processes[0].progress(None)
        time.sleep(0.02)
    assert not job.ends


def test_what_is_being_saved_comes_to_its_end_first(start):
    job, saved = start(2), []

    def wait():
        time.sleep(0.1)
        saved.append(dict(job.ends))

    with job.processes[0].saving(wait):
        job.processes[1].fail("no", 1)
        job.wait(range(2))
    assert saved and 0 not in saved[0]


def test_a_process_that_is_done_still_hears_of_a_failure(start):
    job = start(2)
    waiting = threading.Thread(target=job.processes[0].finish)
    waiting.start()
    time.sleep(0.05)
    job.processes[1].fail("late", 4)
    assert job.wait(range(2)) == {0: 4, 1: 4}
    job.store.at_end.set()
    waiting.join()


def test_all_done_is_silence(start, capsys):
    job = start(2)
    job.store.at_end.set()
    for process in job.processes:
        process.finish()
    job.store.answers = False
    time.sleep(1.2)
    assert not job.ends and capsys.readouterr().err == ""


def test_what_processes_say_waits_for_the_last_of_them(start, monkeypatch):
    job, order = start(2), []
    monkeypatch.setattr(peers, "_peers", job.processes[1])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(job.store, "wait_at_barrier", lambda n, _: order.append(n))

    def tell(data):
        order.append("told")
        return np.stack([data, data])

    monkeypatch.setattr(multihost_utils, "process_allgather", tell)
    assert peers.gather("one") == ["one", "one"]
    assert peers.gather("two") == ["two", "two"]
    assert order == ["ldm_jax/met/1", "told", "ldm_jax/met/2", "told"]


def test_without_a_job_nothing_happens():
    peers.progress(3)
    peers.await_cause("gloo")
    peers.fail("x", 1)
    assert not peers.several()
    peers.finish()
    with peers.saving(lambda: None):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host", 2, 0, False), "--coordinator=host is not host:port"),
        (("host:x", 2, 0, False), "--coordinator=host:x is not host:port"),
        ((":80", 2, 0, False), "--coordinator=:80 is not host:port"),
        (("host:²", 2, 0, False), "--coordinator=host:² is not host:port"),
        (("host:99999", 2, 0, True), "is not host:port"),
        (("host:80", 2, 2, False), "--process_id=2 must be less than --num_proc"),
        ((None, 2, 0, False), "--num_processes=2 needs --coordinator"),
        ((None, None, 1, False), "--process_id=1 needs --coordinator"),
    ],
)
def test_flags_of_a_job_that_contradict_each_other(flags, message):
    with pytest.raises(ConfigError, match=message):
        cluster.check(*flags)


def test_who_is_missing_at_the_start_is_said():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        # Bound, but it does not listen.
        text = cluster._explain(address, 1, 30)
        assert f"nothing answers at --coordinator={address} within 30 s" in text
        server.listen()
        assert "not all processes" in cluster._explain(address, 1, 30)
    assert "not all processes" in cluster._explain(address, 0, 30)
