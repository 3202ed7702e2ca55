"""A run that is killed or asked to stop ends as one that was left alone."""

import os
import signal
import threading
import time

import pytest

from ldm_jax import checkpoint
from ldm_jax.errors import CheckpointError, Stopped
from tests.runs import assert_same_bits, command, finish, train, weights_of


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    shapes_dir, tmp_path, capfd, ctrl_c
):
    # Were it through before, no signal shall end the tests.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asking = threading.Thread(target=_ask_to_stop, args=[cut])
    asking.start()
    try:
        with pytest.raises(Stopped) as stopped:
            # Long enough that the signals find it at work.
            train("shapes_autoencoder", shapes_dir, cut, train__num_steps=4000)
    finally:
        asking.join()
        signal.signal(signal.SIGTERM, previous)
    assert stopped.value.exit_code == 143
    step = int(checkpoint.checkpoint_folder(cut).name)
    assert f"step {step}: asked to stop" in str(stopped.value)
    assert "this step is finished and saved first" in capfd.readouterr().err
    for workdir in (cut, whole):
        train(
            "shapes_autoencoder",
            shapes_dir,
            workdir,
            train__num_steps=step + 1,
            allow_config_change=True,
            train__checkpoint_every=1000,
        )
    assert f"resuming at step {step} of {step + 1}" in capfd.readouterr().out
    assert_same_bits(weights_of(whole), weights_of(cut))


def _ask_to_stop(workdir):
    """As a scheduler that says it twice, and somebody who presses Ctrl-C."""
    _wait_for_step(workdir, 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_stopped_runs_go_on(shapes_dir, tmp_path):
    def start(workdir):
        return command(
            "train.py",
            "--config=configs/shapes_autoencoder.py:tiny",
            f"--workdir={workdir}",
            f"--config.data.data_dir={shapes_dir}",
            # Long enough that a signal finds it at work.
            "--config.train.num_steps=24",
            "--config.train.checkpoint_every=3",
            "--config.train.log_every=20",
            "--config.train.preview_images=0",
            "--config.data.eval_split=",
        )

    whole, workdir = tmp_path / "whole", tmp_path / "cut"
    status, output = finish(start(whole))
    assert status == 0, output
    process = start(workdir)
    _wait_for_step(workdir, 3)
    process.kill()
    finish(process)
    killed_at = int(checkpoint.checkpoint_folder(workdir).name)
    assert 3 <= killed_at < 24

    process = start(workdir)
    _wait_for_step(workdir, killed_at + 3)
    # A scheduler may say it twice, and Ctrl-C is pressed twice.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    status, output = finish(process)
    assert status == 143, output
    assert f"resuming at step {killed_at} of 24" in output
    assert "asked to stop; saved, leaving" in output
    stopped_at = int(checkpoint.checkpoint_folder(workdir).name)
    assert f"step {stopped_at}: asked to stop" in output

    status, output = finish(start(workdir))
    assert status == 0, output
    assert f"resuming at step {stopped_at}" in output
    assert_same_bits(weights_of(whole), weights_of(workdir))


def _wait_for_step(workdir, step, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if int(checkpoint.checkpoint_folder(workdir).name) >= step:
                return
        except CheckpointError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} after {seconds} s")
