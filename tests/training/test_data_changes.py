"""A run does not continue with another config or data than its own, unless told to."""

import copy
import functools

import pytest
from ml_collections import ConfigDict

from ldm_jax import peers
from ldm_jax.checkpoint import Checkpoints
from ldm_jax.data.prepared import TfdsSource
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.training.start.same_run import check_config, check_data, check_same_data
from tests.runs import tiny_config, train

THEN = {
    "num_examples": 100,
    "num_classes": 2,
    "class_names": ["cat", "dog"],
    "fingerprint": "a",
    "shapes": {"image": ["uint8", [8, 8, 3]]},
}
BY_CLASS = ConfigDict(
    {"stage": "diffusion", "conditions": {"label": {"kind": "class_label"}}}
)
OTHERS = (
    ConfigDict({"stage": "autoencoder"}),
    ConfigDict({"stage": "diffusion", "conditions": {"label": {"kind": "none"}}}),
)


@pytest.mark.parametrize("config", [BY_CLASS, *OTHERS])
def test_more_images_are_accepted_where_they_are_allowed(config):
    now = THEN | {"num_examples": 120}
    message = "100 then.*--allow_config_change"
    with pytest.raises(CheckpointError, match=f"120 images, {message}") as error:
        check_data(config, now, {"data": THEN}, False)
    assert "\n" not in str(error.value)
    notes = ["the data have changed: 120 images, 100 then"]
    assert check_data(config, now, {"data": THEN}, True) == notes
    assert check_data(config, THEN, {"data": THEN}, False) == []


def test_another_number_of_classes_never_is():
    now = THEN | {"num_classes": 3, "class_names": ["cat", "dog", "fish"]}
    for config in (BY_CLASS, ConfigDict({"stage": "classifier"})):
        for allow in (False, True):
            with pytest.raises(CheckpointError, match=r"3 classes, 2 then \(new: fish"):
                check_data(config, now, {"data": THEN}, allow)
    for config in OTHERS:
        assert check_data(config, now, {"data": THEN}, True)


def test_checkpoints_from_before_there_was_a_record():
    assert check_data(BY_CLASS, THEN, {}, False) == []
    meta = {"num_classes": 2, "class_names": ("cat", "dog")}
    assert check_data(BY_CLASS, THEN, meta, False) == []
    with pytest.raises(CheckpointError, match="classes were renamed"):
        check_data(BY_CLASS, THEN, meta | {"class_names": ("cat", "cow")}, False)


def test_a_run_names_other_data_before_it_restores(
    first_stage, shapes_dir, monkeypatch
):
    checkpoints = Checkpoints(first_stage, 2, None)
    recorded = checkpoints.meta(checkpoints.latest_step)["data"]
    checkpoints.close()
    assert recorded["num_examples"] == 64 and recorded["shapes"]["image"]
    monkeypatch.setattr(TfdsSource, "fingerprint", lambda source: "other")
    monkeypatch.setattr(Checkpoints, "restore", None)
    with pytest.raises(CheckpointError, match="as many images, but other ones"):
        train("shapes_autoencoder", shapes_dir, first_stage)


@pytest.mark.parametrize("count, same", [(20, True), (19, False)])
def test_all_processes_have_the_same_data(count, same, monkeypatch):
    record = {"num_examples": 20, "num_classes": None, "fingerprint": "ab"}

    def gather(text):
        return [text, text.replace("20", str(count))]

    monkeypatch.setattr(peers, "gather", gather)
    if same:
        check_same_data(record)
    else:
        with pytest.raises(ConfigError, match="process 1: num_examples 19"):
            check_same_data(record)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "class",
            dict(backbone__channels=64),
            "channels is 32 .* and 64 .*starts over$",
        ),
        (
            "class",
            dict(conditions={}),
            "conditions.* fit those conditions.*starts over$",
        ),
        ("autoencoder", dict(first_stage__z_channels=2), "z_channels .*starts over$"),
        ("autoencoder", dict(discriminator__channels=4), "channels .*init_from$"),
        ("class", dict(train__ema_decay=None), "is 0.995 .* average .*init_from$"),
        ("class", dict(train__optimizer={"kind": "adam"}), "states .*init_from$"),
        ("class", dict(train__grad_clip=0.0), "states .*init_from$"),
        ("autoencoder", dict(loss__disc_grad_clip=1.0), "states .*init_from$"),
        ("autoencoder", dict(loss__lecam_weight=0.1), "kept .*init_from$"),
        ("class", dict(loss__learn_logvar=True), "kept .*init_from$"),
        ("class", dict(train__freeze=("backbone/conv_in",)), "states .*init_from$"),
    ],
)
def test_what_alters_the_arrays_of_a_run_is_never_allowed(name, changes, message):
    recorded = {"config": tiny_config(f"shapes_{name}", "").to_dict()}
    config = tiny_config(f"shapes_{name}", "", **changes)
    for allow in (False, True):
        with pytest.raises(CheckpointError, match=message):
            check_config(config, recorded, allow)


@pytest.mark.parametrize(
    "changes, others",
    [
        (
            dict(loss__codebook_ema_decay=0.99),
            dict(loss__codebook_ema_decay=0.99, loss__restart_threshold=0.1),
        ),
        (
            dict(train__freeze=("autoencoder/encoder",)),
            dict(train__freeze=("autoencoder/encoder/", "autoencoder/encoder/conv_in")),
        ),
    ],
)
def test_the_same_arrays_in_other_words_may_be_allowed(changes, others):
    recorded, config = (
        tiny_config("shapes_autoencoder", "", **each) for each in (changes, others)
    )
    assert check_config(config, {"config": recorded.to_dict()}, True)


def test_a_record_without_a_key_that_came_later_is_compared():
    config = tiny_config("shapes_class", "")
    recorded = config.to_dict()
    del recorded["train"]["ema_decay"]
    with pytest.raises(CheckpointError, match="train.ema_decay: None there"):
        check_config(config, {"config": recorded}, False)


def test_keys_that_change_nothing_may_change():
    plain = tiny_config("shapes_class", "")
    other = tiny_config("shapes_class", "", train__end_factor=0.5)
    other.schedule.beta_start = 1e-3
    for config, recorded in ((plain, other), (other, plain)):
        assert check_config(config, {"config": recorded.to_dict()}, False) == []
    falls = tiny_config("shapes_class", "", train__decay="linear")
    with pytest.raises(CheckpointError, match="train.end_factor: 0.5 there, 0.0 here"):
        check_config(falls, {"config": other.to_dict()}, False)


def test_what_leaves_them_as_they_are_may_be_allowed():
    recorded = tiny_config("shapes_class", "").to_dict()
    for key, value in (
        ("backbone.dropout", 0.3),
        ("backbone.remat", True),
        # The same depth, in other words.
        ("backbone.num_res_blocks", (1,)),
        ("conditions.label.dropout", 0.5),
        ("train.ema_decay", 0.9),
        ("train.learning_rate", 0.1),
        ("train.optimizer.weight_decay", 0.0),
    ):
        changed = copy.deepcopy(recorded)
        *path, last = key.split(".")
        functools.reduce(dict.get, path, changed)[last] = value
        with pytest.raises(CheckpointError, match=f"{key}: .*or --allow_config_change"):
            check_config(ConfigDict(changed), {"config": recorded}, False)
        assert check_config(ConfigDict(changed), {"config": recorded}, True)
