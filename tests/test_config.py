"""Sections become objects, and what is wrong in them is named."""

import pytest
from ml_collections import ConfigDict

from ldm_jax import config
from ldm_jax.errors import ConfigError


def _make(size, depth=2, name=None):
    if size < 0:
        raise ValueError(f"size={size} must be positive")
    return size, depth


def test_build_passes_a_section_on():
    assert config.build(_make, ConfigDict({"size": 3}), "unet") == (3, 2)
    assert config.build(_make, {"depth": 5}, "unet", size=1) == (1, 5)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"size": 3, "dpeth": 1}, 'unet.dpeth is not an option; did you mean "depth"?'),
        ({"size": 3, "zzz": 1}, "choose from depth, size"),
        ({"depth": 1}, "unet.size is missing"),
        ({"size": -1}, "unet: size=-1 must be positive"),
    ],
)
def test_build_names_what_is_wrong(section, message):
    with pytest.raises(ConfigError) as error:
        config.build(_make, section, "unet")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_of_another_kind_names_the_kind():
    with pytest.raises(
        ConfigError, match='adam.weight is not an option of the kind "x"'
    ):
        config.build_row(_make, "x", {"size": 1, "weight": 3}, "adam")
    assert config.build_row(_make, "x", {"size": 3}, "adam") == (3, 2)


def test_entries_that_are_off_are_left_out():
    section = ConfigDict({"label": {"kind": "none"}, "map": {"kind": "spatial"}})
    assert config.entries_of(section) == {"map": {"kind": "spatial"}}
    assert config.entries_of(None) == {}


def test_choose_suggests():
    with pytest.raises(ConfigError, match='did you mean "ddim"'):
        config.choose({"ddim": 1, "plms": 2}, "dimm", "sample.sampler")


def test_json_round_trip_keeps_tuples():
    first = ConfigDict({"unet": {"mult": (1, 2), "heads": None}, "lr": 1e-4})
    again = config.from_json(config.to_json(first))
    assert again == first
    assert again.unet.mult == (1, 2)


def test_configs_of_old_versions_are_read_with_the_names_of_today():
    fields = {"channels": 8}
    train = {"freeze": ("unet/conv_in", "conditioner"), "num_steps": 4}
    train["sharding_overrides"] = (("params/unet/conv", 1), ("unets", None))
    found = config.upgrade({"stage": "diffusion", "unet": fields, "train": train})
    backbone = {"kind": "unet", "channels": 8}
    renamed = {"freeze": ("backbone/conv_in", "conditioner"), "num_steps": 4}
    renamed["sharding_overrides"] = (("params/backbone/conv", 1), ("unets", None))
    assert found == {"stage": "diffusion", "backbone": backbone, "train": renamed}
    # Of today's, paths stay as they are.
    for today in (found, {"backbone": backbone, "train": train}, {"train": train}):
        assert config.upgrade(today) == today
    assert config.upgrade({"backbone": fields}) == {"backbone": backbone}


def test_a_config_of_an_old_version_is_accepted_with_a_note():
    old = ConfigDict({"unet": {"channels": 8}, "seed": 0})
    found, notes = config.upgrade_config(old)
    assert found.to_dict() == {"backbone": {"kind": "unet", "channels": 8}, "seed": 0}
    assert len(notes) == 1 and "`backbone`" in notes[0]
    again, notes = config.upgrade_config(found)
    assert again is found and notes == []


def test_differences_name_keys_and_respect_the_free_ones():
    ours = ConfigDict({"a": {"x": 1, "y": (1, 2)}, "b": 3, "free": {"z": 1}})
    theirs = ConfigDict({"a": {"x": 2, "y": [1, 2]}, "free": {"z": 9}})
    rows = config.differences(ours, theirs, ignore=("free",))
    assert rows == [("a.x", 1, 2), ("b", 3, None)]
