"""One run at a time in a folder of a store."""

import dataclasses
import json
import os
import threading
import time

import pytest

from ldm_jax import lock
from ldm_jax.errors import WorkdirInUse
from ldm_jax.files import write_json
from ldm_jax.lock import FILE, hold
from ldm_jax.lock.holder import Holder
from ldm_jax.store import claim
from tests.store.stand_in import Objects


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Signs of life come fast, and patience is short."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "DEAD", 0.3)
    monkeypatch.setattr(claim, "SETTLE", 0.01)


def write(folder, number=0, **changes):
    """Leaves the object of another run behind."""
    holder = dataclasses.asdict(dataclasses.replace(Holder.here(), **changes))
    write_json(folder / FILE, holder | {"token": "theirs", "number": number})


def take(folder, override=False):
    """Takes the folder once, and says whose name stood in it."""
    with hold(folder, override):
        return json.loads((folder / FILE).read_bytes())["process"]


def test_a_folder_is_held_once_and_given_back(bucket):
    with hold(bucket):
        with pytest.raises(WorkdirInUse, match=f"{bucket} is in use by process"):
            take(bucket, override=True)
        first = json.loads((bucket / FILE).read_bytes())["number"]
        end = time.monotonic() + 5
        while json.loads((bucket / FILE).read_bytes())["number"] == first:
            assert time.monotonic() < end, "no sign of life"
            time.sleep(0.01)
    assert not bucket.exists()
    assert take(bucket) == os.getpid()


def test_the_dead_of_this_host_hold_nothing(bucket, capsys):
    write(bucket, began="1")
    assert take(bucket) == os.getpid()
    assert "note: the last run, process " in capsys.readouterr().out


def test_a_claim_whose_answer_was_lost_is_known(bucket, monkeypatch):
    """The library asks again then, and hears that there is such an object."""
    send = Objects._open

    def lose(self, path, mode="rb", **options):
        if mode == "xb":
            with send(self, path, mode) as file:
                file.write(made._data())
        return send(self, path, mode, **options)

    made = claim.Claim(bucket / FILE, {})
    monkeypatch.setattr(Objects, "_open", lose)
    assert made.make() and made.is_mine()
    assert not claim.Claim(bucket / FILE, {}).make()


def test_a_silent_holder_elsewhere_is_waited_for(bucket, capsys):
    write(bucket, host="far", machine="far boot")
    start = time.monotonic()
    assert take(bucket) == os.getpid()
    assert 0.2 < time.monotonic() - start < 5
    assert "is taken for dead" in capsys.readouterr().out
    write(bucket, host="far", machine="far boot")
    assert take(bucket, override=True) == os.getpid()


def test_a_holder_elsewhere_that_gives_signs_of_life_is_left_alone(bucket, monkeypatch):
    monkeypatch.setattr(lock, "DEAD", 30.0)
    ended = threading.Event()

    def live():
        number = 0
        while not ended.wait(0.02):
            write(bucket, number := number + 1, host="far", machine="far boot")

    write(bucket, host="far", machine="far boot")
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(WorkdirInUse, match=r"sends heartbeats.*--take_workdir"):
            take(bucket)
    finally:
        ended.set()
        thread.join()


def test_one_of_many_that_start_at_once_wins(bucket):
    barrier, won, lost = threading.Barrier(6), [], []

    def run():
        barrier.wait()
        try:
            with hold(bucket):
                won.append(1)
                while len(lost) < 5:
                    time.sleep(0.001)
        except WorkdirInUse:
            lost.append(1)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(won), len(lost)) == (1, 5)
