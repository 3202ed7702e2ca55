"""A run does not go on with other data than it began with, unless it is told to."""

import pytest
from ml_collections import ConfigDict

from ldm_jax import peers
from ldm_jax.checkpoint import Checkpoints
from ldm_jax.data.prepared import TfdsSource
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.training.start.same_run import check_data, check_same_data
from tests.runs import train

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
