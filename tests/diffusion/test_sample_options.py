"""Options of sampling: static under jit, named alike in configs, flags and code."""

import functools

import jax
import pytest

from configs import common
from ldm_jax.diffusion.guidance import GuidanceOptions
from ldm_jax.diffusion.sample_options import NAMES, SampleOptions, from_flat, to_flat
from ldm_jax.diffusion.samplers import ddim


def make_options():
    """Options that differ from the default wherever one may."""
    return SampleOptions(
        sampler="euler_ancestral",
        num_steps=7,
        eta=0.5,
        size=[32, 64],
        guidance=GuidanceOptions({"caption": 5.0, "depth": 2.0}, [0.1, 0.9], 0.7),
    )


def test_equal_options_are_one_program():
    assert make_options() == make_options() != SampleOptions()
    assert make_options().size == (32, 64)
    traces = []

    @functools.partial(jax.jit, static_argnames="options")
    def draw(x, options):
        traces.append(options)
        return x * options.num_steps

    for options in (make_options(), make_options(), SampleOptions()):
        draw(1.0, options)
    assert traces == [make_options(), SampleOptions()]


def test_flat_names_lead_there_and_back():
    options = make_options()
    flat = to_flat(options)
    assert tuple(flat) == NAMES
    assert flat["num_steps"] == 7 and flat["guidance_rescale"] == 0.7
    # Of several scales the order matters.
    assert flat["guidance_scale"] == (("caption", 5.0), ("depth", 2.0))
    assert from_flat(flat, options.size) == options
    assert from_flat({}) == SampleOptions()


def test_names_are_those_of_configs():
    assert common.sample().keys() <= set(NAMES)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SampleOptions("ddimm"), "unknown sampler 'ddimm'"),
        (lambda: SampleOptions("heun", eta=0.5), "no option 'eta'"),
        (lambda: SampleOptions(eta=2.0), "eta must be in .0, 1."),
        (lambda: SampleOptions(ddim(), eta=0.7), "to the constructor of the sampler"),
        (lambda: SampleOptions(spacing="even"), "unknown spacing 'even'"),
        (lambda: SampleOptions(final_level="last"), "unknown final_level"),
        (lambda: SampleOptions(shift=0.0), "shift must be more than 0"),
        (lambda: GuidanceOptions(interval=(0.9, 0.1)), "0 <= low <= high <= 1"),
        (lambda: GuidanceOptions(rescale=1.5), "guidance_rescale must be in"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
