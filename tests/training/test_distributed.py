"""Two processes of one job do what one process does."""

import json
import socket

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint
from tests.runs import SHALLOW, command, finish, tiny_config, train


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_as_one(shapes_dir, first_stage, tmp_path):
    overrides = {
        "first_stage__workdir": str(first_stage),
        "train__num_steps": 2,
        "train__preview_every": 2,
        "eval__every": 2,
        "eval__num_samples": 10,
        "eval__batch_size": 8,
        "eval__distances": ("frechet",),
        "eval__best": "frechet",
        "eval__levels": 2,
        **SHALLOW,
    }
    train("shapes_class", shapes_dir, tmp_path / "one", **overrides)
    port = _free_port()
    jobs = [
        command(
            "train.py",
            "--config=configs/shapes_class.py:tiny",
            f"--config.data.data_dir={shapes_dir}",
            f"--config.first_stage.workdir={first_stage}",
            "--config.train.num_steps=2",
            "--config.train.preview_every=2",
            "--config.eval.every=2",
            "--config.eval.num_samples=10",
            "--config.eval.batch_size=8",
            "--config.eval.distances=frechet",
            "--config.eval.best=frechet",
            "--config.eval.levels=2",
            "--config.backbone.channel_mult=(1,)",
            f"--workdir={tmp_path / 'two'}",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={index}",
            devices=2,
        )
        for index in range(2)
    ]
    for job in jobs:
        status, output = finish(job)
        assert status == 0, output

    one, two = (_last_losses(tmp_path / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    weights = [checkpoint.load_weights(tmp_path / n)[1] for n in ("one", "two")]
    gaps = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).mean(), *weights))
    rate = tiny_config("shapes_class", shapes_dir).train.learning_rate
    assert np.mean(gaps) < 0.05 * rate
    assert list((tmp_path / "two" / "previews").glob("samples_*.png"))
    assert checkpoint.checkpoint_folder(tmp_path / "two", "best").name == "2"


def _last_losses(workdir):
    """The last training loss of a run, and all that its evaluations say."""
    losses = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        losses |= {k: v for k, v in metrics.items() if k == "loss" or k[:5] == "eval/"}
    return losses
