"""Two processes of one job do what one process does."""

import json

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint
from tests.processes import free_port
from tests.runs import command, finish_all, tiny_config, train

PLAIN = {"train.num_steps": 2, "train.preview_images": 0}
MEASURED = PLAIN | {
    "train.preview_images": 8,
    "train.preview_every": 2,
    "eval.every": 2,
    "eval.num_samples": 10,
    "eval.batch_size": 8,
    "eval.distances": ("frechet",),
    "eval.best": "frechet",
    "eval.levels": 2,
}

# Kernels of tiny networks, over the devices of both.
SPLIT = (
    "--config.train.mesh.fsdp=4",
    "--config.train.sharding_overrides="
    "(('conv_(in|out)/kernel', 3), ('(embedding|attention.*)/kernel', 1))",
)


@pytest.mark.parametrize(
    "options",
    [PLAIN, pytest.param(MEASURED, marks=pytest.mark.slow)],
    ids=["plain", "measured"],
)
def test_two_processes_train_as_one(options, shapes_dir, first_stage, tmp_path):
    overrides = {key.replace(".", "__"): value for key, value in options.items()}
    overrides["first_stage__workdir"] = str(first_stage)
    train("shapes_class", shapes_dir, tmp_path / "one", whole=True, **overrides)
    flags = []
    for key, value in options.items():
        value = ",".join(value) if isinstance(value, tuple) else value
        flags.append(f"--config.{key}={value}")
    port = free_port()
    jobs = [
        command(
            "train.py",
            "--config=configs/shapes_class.py:tiny",
            f"--config.data.data_dir={shapes_dir}",
            f"--config.first_stage.workdir={first_stage}",
            *flags,
            *SPLIT,
            f"--workdir={tmp_path / 'two'}",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={index}",
            devices=2,
        )
        for index in range(2)
    ]
    finish_all(jobs)

    one, two = (_last_losses(tmp_path / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    weights = [checkpoint.load_weights(tmp_path / n)[1] for n in ("one", "two")]
    gaps = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).mean(), *weights))
    rate = tiny_config("shapes_class", shapes_dir).train.learning_rate
    assert np.mean(gaps) < 0.05 * rate
    if options is MEASURED:
        assert list((tmp_path / "two" / "previews").glob("samples_*.png"))
        assert checkpoint.checkpoint_folder(tmp_path / "two", "best").name == "2"


def _last_losses(workdir):
    """The last training loss of a run, and all that its evaluations say."""
    losses = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        losses |= {k: v for k, v in metrics.items() if k == "loss" or k[:5] == "eval/"}
    return losses
