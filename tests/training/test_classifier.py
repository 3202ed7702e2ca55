"""The classifier of noisy latents learns, resumes and is refused where it is wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.shapes_classifier import get_config
from ldm_jax import checkpoint
from ldm_jax.build import make_classifier, make_first_stage, make_noise_schedule
from ldm_jax.convert.formats import convert
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.models.classifier import Classifier, log_prob
from ldm_jax.trained import load_classifier
from ldm_jax.training import classifier
from tests.runs import tiny_config, train

TINY = Classifier(
    out_channels=2,
    channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    num_heads=1,
    norm_groups=2,
    pool="adaptive",
)
MODEL = LatentClassifier(TINY, make_schedule(), make_first_stage({"kind": "identity"}))
FROZEN = {"first_stage": {}, "statistics": LatentStatistics().arrays()}


def make_batch(rng, size=32):
    """Dark and bright noise, in equal shares."""
    label = np.arange(size, dtype=np.int32) % 2
    bright = 6.0 * label[:, None, None, None] - 3
    images = bright + 0.3 * rng.standard_normal((size, 4, 4, 3))
    return {"image": images.astype(np.float32), "label": label}


def test_learns_to_tell_classes_apart_at_all_noise_levels():
    config = tiny_config("shapes_classifier", "", train__learning_rate=1e-2)
    config.train.ema_decay = None
    rng = np.random.default_rng(0)
    stage = classifier.make_steps(config, MODEL, FROZEN, make_batch(rng))
    state = jax.jit(stage.init)(jax.random.key(0))
    step = jax.jit(stage.train_step)
    losses = []
    for _ in range(40):
        state, metrics = step(state, FROZEN, make_batch(rng))
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses[0], np.log(2), atol=0.05)
    batch = make_batch(rng, 128)
    batch["mask"] = np.arange(128) < 96
    evaluate = jax.jit(stage.eval_step)
    metrics = evaluate(state, FROZEN, batch, jax.random.key(1))
    assert metrics["accuracy"] > 0.9 and metrics["loss"] < 0.3
    # Rows that the mask leaves out do not count.
    batch["label"] = np.where(batch["mask"], batch["label"], 1 - batch["label"])
    again = evaluate(state, FROZEN, batch, jax.random.key(1))
    np.testing.assert_allclose(again["accuracy"], metrics["accuracy"], rtol=1e-6)


@pytest.fixture(scope="module")
def workdir(shapes_dir, first_stage, tmp_path_factory):
    """Workdir of a tiny classifier, trained in two parts."""
    folder = tmp_path_factory.mktemp("classifier")
    for steps in (2, 4):
        options = {"first_stage__workdir": str(first_stage), "train__num_steps": steps}
        train("shapes_classifier", shapes_dir, folder, whole=True, **options)
    return folder


def test_resumes_and_evaluates(workdir):
    metas = [checkpoint.load_weights(workdir, step)[2] for step in (2, 4)]
    for key in ("first_stage", "scaling_factor", "num_classes", "class_names"):
        assert metas[0][key] == metas[1][key]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if "accuracy" in row] == [2, 4]
    evaluated = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    assert len(evaluated) == 2 and 0 <= evaluated[-1] <= 1
    assert not (workdir / "previews").exists()


def diffusion_like(workdir, **changes):
    """A model on the classifier's latents, and what its checkpoint would record."""
    _, _, meta = checkpoint.load_weights(workdir)
    config = tiny_config("shapes_classifier", "")
    first = make_first_stage({"kind": "identity"})
    network = make_classifier(config, meta["num_classes"])
    model = LatentClassifier(network, make_noise_schedule(config), first)
    return dataclasses.replace(model, **changes), meta


def test_a_trained_classifier_is_ready_for_use(workdir):
    model, meta = diffusion_like(workdir)
    trained = load_classifier(workdir, model, meta)
    assert len(trained.class_names) == meta["num_classes"]
    latents, timesteps = jnp.ones((2, 16, 16, 4)), jnp.array([0, 999])
    values = jax.jit(
        lambda labels: log_prob(
            trained.module, trained.params, latents, timesteps, labels
        )
    )(jnp.array([0, 1]))
    assert values.shape == (2,) and (values < 0).all()


def test_no_other_format_takes_a_classifier(workdir, tmp_path):
    with pytest.raises(ConversionError, match="holds a classifier of noisy latents"):
        convert(workdir, tmp_path / "model.safetensors")


def test_builds_at_full_size():
    config = get_config()
    network = make_classifier(config, 8)
    arguments = jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1)
    params = jax.eval_shape(network.init, *arguments)["params"]
    assert 300_000 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 500_000


def test_a_classifier_of_other_latents_is_refused(workdir, first_stage):
    model, meta = diffusion_like(workdir)
    other = meta | {"first_stage": meta["first_stage"] | {"checksum": 1}}
    for wrong, recorded, message in (
        (model, other, "their first stages differ"),
        (model, meta | {"scaling_factor": 100.0}, "scaling factors are"),
        (
            dataclasses.replace(model, schedule=make_schedule("linear")),
            meta,
            "their noise schedules differ",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_classifier(workdir, wrong, recorded)
    with pytest.raises(ConfigError, match="give the workdir of a classifier"):
        load_classifier(first_stage, model, meta)


def test_data_without_classes_are_refused():
    config = tiny_config("shapes_classifier", "")
    with pytest.raises(ConfigError, match="has no class labels"):
        make_classifier(config, None)
