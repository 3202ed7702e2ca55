"""What every kind of backbone keeps to, and that a kind is one row of one table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from ldm_jax import checkpoint, ranges, sampling
from ldm_jax.build import make_backbone
from ldm_jax.errors import ConfigError
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.layers import timestep_embedding
from tests.runs import train
from tests.sampling.common import run

CHANNELS, TOKENS = 4, 5
SLOTS = ("context", "concat", "vector")


class Mixer(nn.Module):
    """A small network of another kind: pixels are mixed, then channels."""

    out_channels: int
    width: int
    dropout: float = 0.0
    dtype: str = "float32"

    field_ranges = {"width": ranges.whole(1, 1024), "dropout": ranges.real(0, 1, ")")}
    tiny = {"width": 16}
    size_multiple = 4

    @property
    def vector_width(self):
        return self.width

    @nn.nowrap
    def identity(self):
        return {}

    @nn.compact
    def __call__(
        self, latents, timesteps, context=None, concat=None, vector=None, *, train=False
    ):
        b, h, w, _ = latents.shape
        if h % 4 or w % 4:
            raise ValueError(f"latents of {h} x {w}: both must be multiples of 4")
        if concat is not None:
            raise ValueError("the slot 'concat' is not of this backbone")
        dense = lambda width: nn.Dense(width, dtype=self.dtype)  # noqa: E731
        x = dense(self.width)(latents)
        embedding = dense(self.width)(timestep_embedding(timesteps, self.width))
        if context is not None:
            embedding += dense(self.width)(context.mean(axis=1))
        if vector is not None:
            embedding += vector.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(
            nn.gelu(x + embedding[:, None, None])
        )
        x = x.reshape(b, h * w, -1)
        x += jnp.swapaxes(dense(h * w)(jnp.swapaxes(x, 1, 2)), 1, 2)
        x = dense(self.out_channels)(x).reshape(b, h, w, -1)
        return x.astype(jnp.float32)


@pytest.fixture(autouse=True)
def mixer(monkeypatch):
    """Adds the second kind: one row."""
    monkeypatch.setitem(BACKBONES, "mixer", Mixer)


@pytest.fixture(params=[*BACKBONES, "mixer"])
def kind(request):
    return request.param


def make(kind, **fields):
    toy = BACKBONES[kind].tiny | fields
    return make_backbone({"kind": kind, **toy}, out_channels=CHANNELS)


def has_dropout(kind):
    return any(field.name == "dropout" for field in dataclasses.fields(BACKBONES[kind]))


def inputs(backbone, multiples=(4, 4)):
    """A batch of two for the backbone, with a condition in every slot."""
    height, width = (backbone.size_multiple * multiple for multiple in multiples)
    keys = jax.random.split(jax.random.key(0), 4)
    return dict(
        latents=jax.random.normal(keys[0], (2, height, width, CHANNELS)),
        timesteps=jnp.array([3, 977]),
        context=jax.random.normal(keys[1], (2, TOKENS, 16)),
        concat=jax.random.normal(keys[2], (2, height, width, 3)),
        vector=jax.random.normal(keys[3], (2, backbone.vector_width)),
    )


def without(given, *slots):
    return {key: value for key, value in given.items() if key not in slots}


def shapes_of(backbone, given):
    """Shapes of the parameters for such inputs."""
    return jax.eval_shape(lambda: backbone.init(jax.random.key(0), **given))


def draw(backbone, given):
    """Parameters with nothing at zero, so that every path shows."""
    rng = np.random.default_rng(0)

    def leaf(shape):
        fan_in = max(np.prod(shape.shape[:-1]), 1)
        return rng.standard_normal(shape.shape, np.float32) / np.sqrt(fan_in)

    return jax.tree.map(leaf, shapes_of(backbone, given))


def test_a_toy_is_built_by_the_key_tiny(kind):
    backbone = make_backbone({"kind": kind, "tiny": True}, out_channels=CHANNELS)
    assert backbone == make(kind)
    with pytest.raises(ConfigError, match="backbone.no_such_field is not an option"):
        make(kind, no_such_field=1)


def test_every_field_has_a_range_of_its_own(kind):
    fields = {field.name for field in dataclasses.fields(BACKBONES[kind])}
    # These have the same meaning for every kind.
    own = fields - {"out_channels", "dtype", "parent", "name"}
    assert own <= BACKBONES[kind].field_ranges.keys()
    for field in own & {"width", "channels"}:
        with pytest.raises(ConfigError, match=f"backbone.{field} must be from 1"):
            make(kind, **{field: -3})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("multiples", [(4, 4), (2, 3)])
def test_the_output_is_float32_in_the_shape_of_the_latents(kind, multiples, dtype):
    backbone = make(kind, dtype=dtype)
    given = without(inputs(backbone, multiples), *SLOTS)
    output, variables = jax.eval_shape(
        lambda: backbone.init_with_output(jax.random.key(0), **given)
    )
    assert output.shape == given["latents"].shape
    assert output.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_other_sizes_are_refused(kind):
    backbone = make(kind)
    multiple = backbone.size_multiple
    if multiple == 1:
        return
    given = without(inputs(backbone), *SLOTS)
    latents = jnp.zeros((2, 4 * multiple + 1, 4 * multiple, CHANNELS))
    with pytest.raises(ValueError, match=f"multiples of {multiple}"):
        shapes_of(backbone, given | dict(latents=latents))


@pytest.mark.parametrize("slot", SLOTS)
def test_a_slot_is_taken_or_refused(kind, slot):
    backbone = make(kind)
    given = inputs(backbone)
    given = without(given, *(other for other in SLOTS if other != slot))
    try:
        params = draw(backbone, given)
    except ValueError as error:
        assert slot in str(error) or "slot" in str(error)
        return
    apply = jax.jit(backbone.apply)
    changed = given | {slot: given[slot] + 1.0}
    # What is taken is heeded.
    assert np.any(apply(params, **given) != apply(params, **changed))


def test_a_vector_of_another_width_is_refused(kind):
    backbone = make(kind)
    given = inputs(backbone)
    vector = jnp.zeros((2, backbone.vector_width + 1))
    with pytest.raises((ValueError, TypeError)):
        shapes_of(backbone, without(given, "context", "concat") | dict(vector=vector))


def test_train_turns_dropout_on_and_nothing_else(kind):
    rates = (0.0, 0.5) if has_dropout(kind) else (None,)
    for rate in rates:
        backbone = make(kind) if rate is None else make(kind, dropout=rate)
        given = without(inputs(backbone), *SLOTS)
        params = draw(backbone, given)

        @jax.jit
        def trained(seed, backbone=backbone, params=params, given=given):
            rngs = {"dropout": jax.random.key(seed)}
            return backbone.apply(params, **given, train=True, rngs=rngs)

        still = jax.jit(backbone.apply)(params, **given)
        if rate:
            assert np.any(trained(0) != trained(1))
            np.testing.assert_array_equal(trained(0), trained(0))
        else:
            np.testing.assert_allclose(trained(0), still, rtol=1e-5, atol=1e-5)


def test_the_second_call_does_not_recompile(kind):
    backbone = make(kind)
    given = without(inputs(backbone), *SLOTS)
    params, traced = draw(backbone, given), []

    @jax.jit
    def apply(params, given):
        traced.append(1)
        return backbone.apply(params, **given)

    first = apply(params, given)
    again = apply(params, given | dict(timesteps=given["timesteps"] + 1))
    assert len(traced) == 1
    assert np.any(first != again)


def test_identity_is_said_in_json(kind):
    identity = make(kind).identity()
    assert json.loads(json.dumps(identity)).keys() == identity.keys()
    others = {"dropout": 0.5} if has_dropout(kind) else {}
    assert identity == make(kind, dtype="bfloat16", **others).identity()


def test_identity_tells_what_shapes_do_not(kind):
    toy = make(kind)
    given = without(inputs(toy), *SLOTS)
    shapes = shapes_of(toy, given)
    for field in dataclasses.fields(toy):
        value = getattr(toy, field.name)
        if type(value) is not int or value == 1:
            continue
        other = toy.clone(**{field.name: value // 2})
        if shapes_of(other, given) == shapes:
            assert other.identity() != toy.identity(), field.name


def test_heads_are_part_of_the_identity_of_a_unet():
    identities = [
        make("unet", num_heads=heads, head_channels=None).identity() for heads in (2, 4)
    ]
    assert identities[0] != identities[1]


def test_another_kind_is_one_row(shapes_dir, first_stage, tmp_path):
    options = dict(
        backbone=ConfigDict({"kind": "mixer", "tiny": True}),
        first_stage__workdir=str(first_stage),
        conditions__label__slot="vector",
        conditions__label__features=None,
    )
    workdir = tmp_path / "run"
    for steps in (2, 4):
        train("shapes_class", shapes_dir, workdir, **options, train__num_steps=steps)
    config, params, meta = checkpoint.load_weights(workdir)
    assert (config.backbone.kind, meta["step"]) == ("mixer", 4)
    assert params["backbone"].keys() == {f"Dense_{i}" for i in range(4)}
    model = sampling.load_model(workdir)
    assert model.model.backbone == Mixer(out_channels=4, width=16)
    run(model, tmp_path / "samples", num_samples=2, num_steps=2)
    assert (tmp_path / "samples" / "samples" / "000001.png").is_file()
