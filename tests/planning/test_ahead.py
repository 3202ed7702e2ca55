"""Programs that are compiled ahead of a run are the run's own."""

import json

import jax
import pytest

from ldm_jax import checkpoint, sharding
from ldm_jax.chips import CHIPS
from ldm_jax.config import from_json
from ldm_jax.planning import ahead
from ldm_jax.planning.abstract import Given
from ldm_jax.planning.page import programs_page
from ldm_jax.planning.plan import Options, make_mesh, make_plan


@pytest.fixture(scope="module")
def plan(second_stage):
    """The plan of a run that was trained, from its config alone."""
    meta = checkpoint.read_meta(checkpoint.checkpoint_folder(second_stage))
    options = Options(CHIPS["H100"], "H100", make_mesh(1, 1), mfu=0.4)
    return make_plan(
        from_json(json.dumps(meta["config"])),
        Given(None, meta["num_classes"]),
        options,
    )


def test_a_run_finds_what_was_compiled_ahead(plan):
    # Here the other way about: the run that was compiled its programs.
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    size = plan.planned.config.train.batch_size
    init, step = ahead.compile_ahead(plan.planned, mesh, size)
    assert step.found

    # What a state is drawn with, and what a step reads and writes, is counted exactly.
    memory = plan.memory
    state = memory.parameters + memory.optimiser + memory.average + memory.statistics
    assert init.results == pytest.approx(state, abs=4096)
    assert step.arguments < memory.arguments + 4096
    assert step.results < 4096
    text = programs_page(plan, mesh, [init, step])
    assert "step of 32 x 32" in text and "no accelerator is here" in text
