"""The table of what keys may be: it is complete, and each kind of check."""

import pytest

from configs import common
from ldm_jax import ranges
from ldm_jax.config import build, check_values
from ldm_jax.errors import ConfigError
from ldm_jax.models.unet import UNet
from ldm_jax.training.held_out import due
from tests.published import NAMES, load


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_every_key_of_our_configs(name):
    config = load(name, "tiny").to_dict()
    check_values(load(name, "tiny"))
    assert config["train"].keys() == ranges.TRAIN.keys() | {"optimizer", "mesh"}
    kinds = config.pop("conditions", {}), config["data"].pop("inputs")
    assert all(isinstance(kind, dict) for kind in kinds)
    for section, values in config.items():
        if not isinstance(values, dict):
            assert ranges.find("", section) is not None
            continue
        for key, value in values.items():
            inner = f"{section}.{key}"
            rows = [(inner, k) for k in value] if isinstance(value, dict) else []
            for where in rows or [(section, key)]:
                assert ranges.find(*where) is not None, where


@pytest.mark.parametrize(
    "check, good, bad",
    [
        (ranges.whole(1, 3), (1, 3), (0, 4, 1.0, True, "1", None, float("nan"))),
        (ranges.whole(0, none="off", zero="off"), (0, None, 10**30), (-1, 0.5)),
        (ranges.real(0, 1), (0, 1, 0.5), (-1e-9, 2, float("nan"), "0", None, False)),
        (ranges.real(0, 1, "("), (1, 1e-9), (0,)),
        (ranges.real(0, 1, ")"), (0,), (1,)),
        (ranges.text(), ("a",), ("", " ", 1, None)),
        (ranges.text(empty=True, none="none"), ("", None), (0,)),
        (ranges.place(none="none"), ("", None, "gs://a/b"), ("s3://a/b", 1)),
        (ranges.local_place(), ("", "a"), ("gs://a/b", None)),
        (ranges.place(), ("", "~/a:b", "/a"), ("s3://a/b", "file:///a", None)),
        (ranges.several(ranges.whole(1), 1), ((1,), [1, 2]), ((), 1, (0,), "1")),
        (ranges.per_level(ranges.whole(1)), (1, (1, 2)), (0, (), (0,), "x")),
    ],
)
def test_checks_accept_what_they_say(check, good, bad):
    assert [value for value in good if not check.accepts(value)] == []
    assert [value for value in bad if check.accepts(value)] == []
    with pytest.raises(ConfigError, match="key must be .*, got "):
        ranges.check_value(check, bad[0], "key")


def test_whole_numbers_are_read_in_plain_digits_alone():
    assert [ranges.read_whole(text) for text in ("0", "12", "007")] == [0, 12, 7]
    for text in ("", "-1", "+1", "1.5", " 1", "1_0", "²", "٣", "x", "9" * 5000):
        assert ranges.read_whole(text) is None, text
    within = [ranges.read_whole(text, 1, 3) for text in "0134"]
    assert within == [None, 1, 3, None]


def test_types_go_by_the_names_that_people_use():
    for name in ("bf16", "BF16", "bfloat16", "torch.bfloat16"):
        assert ranges.dtype_name(name) == "bfloat16"
    assert [ranges.dtype_name(n) for n in ("fp32", "half")] == ["float32", "float16"]
    fields = dict(channels=8, num_heads=1, norm_groups=4, dtype="bf16")
    assert build(UNet, fields, "backbone", out_channels=1).dtype == "bfloat16"
    config = load("shapes_class", "tiny")
    config.backbone.dtype = "bf16"
    assert check_values(config).backbone.dtype == "bfloat16"


def test_values_too_long_for_a_line_are_cut():
    for value in ("x" * 1000, 10**5000, tuple(range(1000))):
        with pytest.raises(ConfigError) as error:
            ranges.check_value(ranges.whole(0, 1), value, "train.batch_size")
        assert len(str(error.value)) < 200


def test_what_a_kind_from_elsewhere_means_it_checks_itself():
    def make(channels):
        return channels

    assert build(make, {"channels": "any"}, "backbone") == "any"
    with pytest.raises(ConfigError, match=r"backbone.channels must be from 1"):
        build(UNet, {"channels": "any"}, "backbone", out_channels=1)


def test_a_class_says_what_its_fields_may_be():
    class Heads:
        field_ranges = {"num_heads": ranges.whole(1, 8)}

        def __init__(self, num_heads, channels=1):
            del num_heads, channels

    # Of the package or not, a name of the U-Net's means what the class says.
    for module in (__name__, "ldm_jax.models.heads"):
        Heads.__module__ = module
        assert build(Heads, {"num_heads": 8, "channels": "any"}, "backbone")
        with pytest.raises(ConfigError, match=r"num_heads must be from 1 to 8 .* -3"):
            build(Heads, {"num_heads": -3}, "backbone")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.__delitem__("train"), "train is missing"),
        (lambda c: c.train.__delitem__("decay"), "train.decay is missing"),
        (lambda c: c.update(sampl={}), 'config.sampl is not.* did you mean "sample"'),
        (
            lambda c: c.update(stage="autoencoder"),
            r'config\.\w+ is not an option of the stage "autoencoder" .config.stage.; ',
        ),
        (lambda c: c.__delitem__("stage"), "stage=.None. is unknown"),
        (lambda c: c.train.update(evl_every=1), "train.evl_every is not an option"),
    ],
)
def test_sections_that_are_wrong_as_a_whole_are_named(change, message):
    config = load("shapes_class", "tiny")
    change(config)
    with pytest.raises(ConfigError, match=message):
        check_values(config)


def test_intervals_can_be_off():
    for off in (0, None):
        assert not any(due(done, off, final=True) for done in (1, 10))
    assert [done for done in range(1, 8) if due(done, 3, final=done == 7)] == [3, 6, 7]


def test_common_lists_every_key():
    assert common.train().keys() == ranges.TRAIN.keys() | {"optimizer", "mesh"}
    assert common.sample().keys() <= ranges.SAMPLE.keys()
    assert common.evaluation().keys() == ranges.EVAL.keys() | {"weights"}
    assert common.first_stage().keys() == ranges.LATENTS.keys()
