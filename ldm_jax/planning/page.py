"""The plan of a run as text."""

from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from ldm_jax.planning.ahead import Program
from ldm_jax.planning.memory import Memory
from ldm_jax.planning.plan import PLANNED_FRACTION, Plan

# JAX's default fraction of a GPU's memory for programs.
_GPU_FRACTION = 0.75


def page(plan: Plan) -> str:
    """Formats a plan.

    Args:
      plan: Plan.

    Returns:
      Several lines.
    """
    parts = (_head, _networks, _arithmetic, _memory, _verdict, _run)
    return "\n".join(line for part in parts for line in part(plan))


def programs_page(plan: Plan, mesh: Mesh, programs: Sequence[Program]) -> str:
    """Formats the memory of compiled programs beside that of the plan.

    Args:
      plan: Plan.
      mesh: Mesh of devices that the programs were compiled for.
      programs: The compiled programs.

    Returns:
      Several lines.
    """
    return "\n".join(_programs(plan, mesh, programs))


def _programs(plan, mesh, programs):
    device, memory = mesh.devices.flat[0], plan.memory
    yield ""
    yield (
        f"compiled for {mesh.size} x {device.device_kind} as {_sizes(mesh)}; "
        f"stored in {jax.config.jax_compilation_cache_dir or 'no cache'}"
    )
    titles = ("seconds", "arguments", "results", "temporary", "GB in all")
    yield f"{'':<20}" + "".join(f"{title:>12}" for title in titles)
    for program in programs:
        sizes = (program.arguments, program.results, program.temporary, program.total)
        known = "  (was stored before)" if program.found else ""
        yield f"{program.name:<20}{program.seconds:>12.1f}" + _gigabytes(sizes) + known
    sizes = (memory.arguments, 0, memory.temporary, memory.peak)
    yield f"{'step, as counted':<20}{'':>12}" + _gigabytes(sizes)
    if device.platform == "cpu":
        yield (
            "no accelerator is here: what is stored serves runs on a CPU such as this "
            f"one, and its temporaries are not those of {plan.options.chip_name}"
        )


def _gigabytes(sizes):
    return "".join(f"{size / 1e9:>12.3f}" for size in sizes)


def _sizes(mesh):
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _head(plan: Plan) -> Iterator[str]:
    config, options = plan.planned.config, plan.options
    rows = config.train.batch_size // options.mesh.size
    yield (
        f"{config.stage}: {options.mesh.size} x {options.chip_name} as "
        f"{_sizes(options.mesh)}; batch {config.train.batch_size}, {rows} per chip"
        + _in_parts(config.train.accumulate_steps)
    )
    key = next(k for k, v in plan.planned.examples[0].items() if v.ndim == 4)
    shape = " x ".join(map(str, plan.planned.examples[0][key].shape[1:]))
    more = len(plan.planned.examples) - 1
    others = f", the largest of {more + 1} shapes" if more else ""
    yield f"{key}: {shape}{others}"


def _in_parts(parts):
    return f" in {parts} micro-batches" if parts > 1 else ""


def _networks(plan: Plan) -> Iterator[str]:
    yield ""
    titles = f"{'parameters':>16}{'trained':>16}{'forward':>10}{'training':>10}"
    yield f"{'network':<24}{titles}"
    for name, network in plan.networks.items():
        yield (
            f"{name:<24}{network.parameters:>16,}{network.trained:>16,}"
            f"{_tera(network.forward):>10}{_tera(network.training):>10}"
        )
    yield f"{'TFLOP per image':<56}{'':>10}{_tera(plan.training_flops):>10}"


def _arithmetic(plan: Plan) -> Iterator[str]:
    twice = plan.executed / plan.training_flops
    yield f"as it is computed: {_tera(plan.executed)} ({100 * twice:.0f} %)"
    if plan.encoding:
        inline = "image" in plan.planned.examples[0]
        rest = plan.training_flops - (plan.encoding if inline else 0)
        yield (
            f"of images {_tera(rest + plan.encoding)}, of latents that ldm-encode has "
            f"written {_tera(rest)}: encoding adds {100 * plan.encoding / rest:.0f} %"
        )


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield ""
    yield "GB per chip"
    for text, size in _rows(memory):
        yield f"  {text:<40}{size / 1e9:>10.3f}"
    yield f"  {'peak':<40}{memory.peak / 1e9:>10.3f}"
    yield f"  {'(all gradients together)':<40}{memory.gradients / 1e9:>10.3f}"


def _rows(memory: Memory) -> list[tuple[str, int]]:
    rows = (
        ("parameters", memory.parameters),
        ("optimiser", memory.optimiser),
        ("moving average", memory.average),
        ("statistics", memory.statistics),
        ("frozen weights", memory.frozen),
        ("batch", memory.batch),
        ("activations", memory.activations),
        ("weights to multiply with, gradients", memory.fixed),
        ("operands of the operation at the peak", memory.moving),
    )
    return [row for row in rows if row[1]]


def _verdict(plan: Plan) -> Iterator[str]:
    chip, name = plan.options.chip, plan.options.chip_name
    fraction = plan.memory.peak / chip.memory
    size = f"{_digits(plan.memory.peak / 1e9)} of {chip.memory / 1e9:.1f} GB"
    if not plan.fits:
        yield (
            f"does not fit {name}: {size}, of which {100 * PLANNED_FRACTION:.0f} % are "
            "planned with. What was tried:"
        )
        for way in plan.ways:
            mark = "fits" if way.fits else "does not fit"
            yield f"  {way.memory.peak / 1e9:8.1f} GB  {mark:<12}  {way.flags}"
            yield f"{'':29}{way.cost}"
        if not any(way.fits for way in plan.ways):
            yield "  nothing fits: take more chips or a smaller train.batch_size"
        return
    yield f"fits {name}: {size}, {_digits(100 * fraction)} %"
    if fraction > _GPU_FRACTION and chip.kinds[0].startswith("NVIDIA"):
        yield (
            "  jax takes 75 % of a GPU's memory: set XLA_PYTHON_CLIENT_MEM_FRACTION="
            f"{min(0.97, fraction + 0.05):.2f}"
        )


def _run(plan: Plan) -> Iterator[str]:
    cost, train, options = plan.cost, plan.planned.config.train, plan.options
    yield ""
    yield (
        f"at {100 * options.mfu:g} % of {options.chip.tflops:g} TFLOP/s per chip: "
        f"{_digits(cost.images_per_s)} images/s, "
        f"{_in_units(cost.step_s, _TIMES)} per step"
    )
    price = "" if cost.price is None else f", {_digits(cost.price)} in all"
    yield (
        f"{train.num_steps:,} steps, {train.num_steps * train.batch_size:,} images, "
        f"{_in_units(1e18 * cost.exaflop, _OPERATIONS)}: "
        f"{_in_units(3600 * cost.hours, _TIMES)}, "
        f"{_digits(cost.chip_hours)} chip-hours{price}"
    )


# Units, the largest first.
_TIMES = {"days": 86400, "hours": 3600, "minutes": 60, "s": 1, "ms": 1e-3}
_OPERATIONS = {"EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}


def _in_units(value, units):
    """A value in the largest unit that gives at least 2, or else in the smallest."""
    *_, smallest = units
    name = next((name for name in units if value >= 2 * units[name]), smallest)
    return f"{_digits(value / units[name])} {name}"


def _tera(operations):
    return _digits(operations / 1e12)


def _digits(value):
    """Three significant digits; large numbers without decimals."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
