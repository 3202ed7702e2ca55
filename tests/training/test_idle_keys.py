"""Tests of the notes on keys of a config that are set and change nothing."""

import importlib

import pytest
from ml_collections import ConfigDict

from configs import common
from ldm_jax.training.start.idle_keys import idle_notes
from ldm_jax.training.start.opening import read_config


def second_stage(loss=None, train=None, data=None, **schedule):
    return ConfigDict(
        dict(
            stage="diffusion",
            data=common.data(**data or {}),
            first_stage=common.first_stage(),
            schedule=common.schedule(**schedule),
            loss=common.diffusion_loss(**loss or {}),
            train=common.train(**train or {}),
        )
    )


def first_stage(kind, **loss):
    loss = common.autoencoder_loss(**loss)
    section = {"first_stage": dict(kind=kind), "loss": loss, "train": common.train()}
    return ConfigDict(dict(stage="autoencoder", **section))


@pytest.mark.parametrize(
    ["config", "keys"],
    [
        (second_stage(kind="cosine"), []),
        (second_stage(kind="cosine", beta_start=1e-3), ["schedule.beta_start=0.001"]),
        (
            second_stage(kind="rectified_flow", beta_end=0.1, zero_terminal_snr=True),
            ["schedule.beta_end=0.1", "schedule.zero_terminal_snr=True"],
        ),
        (second_stage(kind="linear", beta_start=1e-3), []),
        (second_stage(kind="linear", cosine_s=0.1), ["schedule.cosine_s=0.1"]),
        (second_stage(kind="cosine", cosine_s=0.1, zero_terminal_snr=True), []),
        (second_stage(loss=dict(logit_mean=1.0)), ["loss.logit_mean=1.0"]),
        (
            second_stage(loss=dict(logit_mean=1.0, timestep_sampling="logit_normal")),
            [],
        ),
        (second_stage(train=dict(decay_steps=5)), ["train.decay_steps=5"]),
        (second_stage(train=dict(end_factor=0.1)), ["train.end_factor=0.1"]),
        (second_stage(train=dict(end_factor=0.1, decay="linear")), []),
        (second_stage(train=dict(start_factor=0.1)), ["train.start_factor=0.1"]),
        (second_stage(train=dict(start_factor=0.1, warmup_steps=1)), []),
        (second_stage(data=dict(crop="random", min_crop=0.5)), []),
        (
            second_stage(data=dict(source="latents", crop="random", min_crop=0.5)),
            ["data.crop=random", "data.min_crop=0.5"],
        ),
        (first_stage("kl", kl_weight=1.0), []),
        (first_stage("kl", codebook_beta=1.0), ["loss.codebook_beta=1.0"]),
        (first_stage("vq", codebook_beta=1.0), []),
        (first_stage("vq", kl_weight=1.0), ["loss.kl_weight=1.0"]),
    ],
)
def test_keys_that_change_nothing_are_named(config, keys):
    notes = idle_notes(config)
    assert [note.removeprefix("note: ").partition(" has ")[0] for note in notes] == keys


def test_a_run_says_so():
    config = importlib.import_module("configs.shapes_class").get_config("tiny")
    config.schedule.beta_start = 1e-3
    assert (
        "note: schedule.beta_start=0.001 has no effect: schedule.kind=cosine does "
        "without it"
    ) in read_config(config)[1]
