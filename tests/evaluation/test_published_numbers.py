"""Published numbers: of configs that are there, and what is compared with them."""

import math

import pytest

from ldm_jax.cli import load_config
from ldm_jax.config import to_dict
from ldm_jax.eval_samples import LABEL_MODES
from ldm_jax.evaluation.published_numbers import PUBLISHED, TOLERANCE, find_published
from ldm_jax.evaluation.report import (
    compare_published,
    comparison_reasons,
    markdown,
    sampling_reasons,
)
from ldm_jax.metrics.protocols import PROTOCOLS
from ldm_jax.metrics.set_metrics import SET_METRICS, Result


def test_rows_are_of_configs_with_their_options():
    for name, rows in PUBLISHED.items():
        config = load_config(name)
        for row in rows:
            assert row.protocol in (*PROTOCOLS, "")
            assert all(math.isfinite(value) for value in row.values.values())
        if config.stage == "diffusion":
            # The config samples as its published number was sampled.
            sample = {"guidance_scale": 1.0} | to_dict(config.sample)
            row = find_published(name, sample)
            assert not sampling_reasons(row, sample, row.protocol), name


def test_the_guidance_chooses_the_row():
    name = "imagenet_class:f4"
    assert find_published(name, {"guidance_scale": 1.5}).values["fid"] == 3.60
    assert find_published(name, {"guidance_scale": 1.0}).values["fid"] == 10.56
    assert find_published(name, {"guidance_scale": 7.0}).values["fid"] == 10.56


def results(fid, note="", name="fid"):
    made = Result(fid, None, 50_000, name, note)
    return {name: made, "inception_score": Result(103.0, 2.0, 50_000, "IS", "")}


def test_a_verdict():
    row = find_published("imagenet_class:f4", {})

    def verdict(found, reasons=()):
        first = compare_published(found, row, TOLERANCE, reasons)[0]
        return first.verdict, first.reason

    # What is better passes, too.
    assert verdict(results(5.0)) == verdict(results(11.0)) == ("pass", "")
    assert verdict(results(11.2)) == ("fail", "")
    assert verdict(results(5.0, "of 64")) == ("not comparable", "of 64")
    assert verdict(results(5.0), ("50 steps",)) == ("not comparable", "50 steps")
    random = results(5.0, name="random-features distance (fid)")
    assert verdict(random) == ("not comparable", "measured with random weights")
    verdicts = compare_published(results(11.0), row, TOLERANCE)
    text = markdown("imagenet", results(11.0), verdicts, TOLERANCE, row.source)
    assert "| fid | 11.0000 | - | 50,000 | 10.56 | pass |" in text
    assert "| precision | - | - | - | 0.71 | not comparable: not measured |" in text


def test_other_options_are_named():
    row = find_published("unconditional:celebahq", {})
    sampling = {"sampler": "ddim", "num_steps": 50, "eta": None}
    assert sampling_reasons(row, sampling, "paper") == (
        "num_steps 50, published with 500",
    )
    assert sampling_reasons(row, {}, None) == ("published by the protocol paper",)
    row = find_published("autoencoder_kl:f8", {})
    images = {"image_size": 32, "num_images": 50_000}
    reasons = sampling_reasons(row, images, None)
    assert reasons == ("image_size 32, published with 256",)


def test_what_a_number_of_samples_is_compared_with():
    row = find_published("imagenet_class:f4", {})
    record = {"sample": dict(row.sampling), "conditions": {"label_mode": "random"}}
    whole = {"name": "imagenet", "whole_training_set": True}

    def reasons(record=record, reference=whole, row=row, protocol="paper"):
        return " & ".join(comparison_reasons(row, record, reference, protocol))

    assert reasons() == reasons(reference=None) == ""
    balanced = record | {"conditions": {"label_mode": "balanced"}}
    assert reasons(balanced) == "classes balanced, published with random"
    # Images that are there do not say with what guidance they were drawn.
    assert "how the images were drawn, as their guidance" in reasons({})
    for other in (whole | {"whole_training_set": False}, {"name": "imagenet"}):
        assert "the reference is imagenet, published with the whole training" in (
            reasons(reference=other)
        )
    text = find_published("text_to_image:laion", {})
    record = {"sample": dict(text.sampling), "conditions": {"split": "validation"}}
    assert reasons(record, {"count": 30_000}, text, "coco30k") == ""
    assert "published with the 30,000" in reasons(record, whole, text, "coco30k")
    first = find_published("autoencoder_kl:f8", {})
    assert reasons(row=first) == "published of the reconstructions of a first stage"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol(name):
    protocol = PROTOCOLS[name]
    assert set(protocol.metrics) <= SET_METRICS.keys()
    assert protocol.label_mode in (*LABEL_MODES, None)
