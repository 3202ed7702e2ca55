"""What the config section `conditions` leaves open, filled."""

import pytest
from ml_collections import ConfigDict

from ldm_jax.build import check_ids, fill_conditions
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.models.unet import UNet


def fill(entry, given=None):
    inputs = {"key": given} if given else {}
    config = ConfigDict({"conditions": {"key": entry}, "data": {"inputs": inputs}})
    unet = UNet(out_channels=2, channels=8, num_heads=1)
    return fill_conditions(config, unet, num_classes=None)["key"]


def test_ids_of_text_follow_from_the_tokenizer_of_the_data():
    given = {"kind": "caption", "tokenizer": "shapes", "max_length": 30}
    tokenizer = load_tokenizer("shapes", 30)
    found = fill({"kind": "text", "features": 8, "num_layers": 1}, given)
    assert found["vocab_size"] == tokenizer.vocab_size and found["max_length"] == 30
    assert found["null_ids"] == tokenizer.null_ids
    # What is said stays.
    said = {"kind": "text", "vocab_size": None, "null_ids": (0,), "max_length": 40}
    found = fill(said, given)
    assert found["vocab_size"] == tokenizer.vocab_size
    assert (found["max_length"], found["null_ids"]) == (40, (0,))
    complete = {"kind": "text", "vocab_size": 99}
    assert fill(complete, {"kind": "caption", "tokenizer": "none"}) == complete
    assert fill({"kind": "clip_text"}) == {"kind": "clip_text"}


def test_ids_of_a_layout_follow_from_its_encoding():
    found = fill({"kind": "layout"}, {"kind": "layout", "vocab_size": 66})
    assert found == {"kind": "layout", "vocab_size": 66, "max_length": 92}
    entry = {"kind": "layout", "max_length": None, "vocab_size": 8192}
    assert fill(entry, {"kind": "layout", "max_objects": 2})["max_length"] == 8


def test_width_of_a_vector_follows_from_the_unet():
    assert fill({"kind": "clip_image", "slot": "vector"})["features"] == 32
    assert "features" not in fill({"kind": "clip_image"})


@pytest.mark.parametrize("kind, given", [("text", "caption"), ("layout", "layout")])
def test_ids_that_nothing_says_are_refused(kind, given):
    message = (
        f"conditions.key.vocab_size is unset: .* data.inputs.key of kind '{given}'"
    )
    with pytest.raises(ConfigError, match=message):
        fill({"kind": kind, "features": 8, "num_layers": 1})


def test_a_vocabulary_holds_every_id_of_the_input():
    size = load_tokenizer("shapes", 30).vocab_size
    inputs = {
        "caption": {"kind": "caption", "tokenizer": "shapes", "max_length": 30},
        "boxes": {"kind": "layout", "vocab_size": 66},
        "depth": {"kind": "depth"},
    }
    enough = {"caption": {"vocab_size": size}, "boxes": {"vocab_size": 99}}
    check_ids(enough, inputs)
    check_ids({"caption": {"kind": "label"}}, inputs)
    check_ids({}, None)
    for key, least in (("caption", size), ("boxes", 66)):
        wrong = enough | {key: {"vocab_size": least - 1}}
        message = f"conditions.{key}.vocab_size={least - 1} .*: set it to {least}, or"
        with pytest.raises(ConfigError, match=message):
            check_ids(wrong, inputs)
