"""Flags that the evaluation commands share, and functions that read them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from ldm_jax import cli
from ldm_jax.errors import ConfigError
from ldm_jax.store import as_path


def define_measurement_flags() -> tuple[flags.FlagHolder, ...]:
    """Defines flags of how to measure; call it in a group.

    Returns:
      Holders of --feature_weights, --skip_unreadable and --save_every.
    """
    return (
        flags.DEFINE_list(
            "feature_weights",
            None,
            "Files of the networks' weights, e.g. inception=pt_inception.pth; without "
            "one the weights are random, and no number is called FID.",
        ),
        flags.DEFINE_bool(
            "skip_unreadable",
            False,
            "Leave out images that cannot be read, and name them, instead of stopping.",
        ),
        flags.DEFINE_integer(
            "save_every",
            5_000,
            "Images between saves of the state, from which a run can resume.",
        ),
    )


def define_comparison_flags() -> tuple[flags.FlagHolder, ...]:
    """Defines flags of what to measure; call it in a group.

    Returns:
      Holders of --distances, --reference and --tokenizer.
    """
    return (
        flags.DEFINE_list(
            "distances",
            None,
            "Set metrics, rows of SET_METRICS, e.g. fid,precision_recall; fid for "
            "samples if unset.",
        ),
        flags.DEFINE_string(
            "reference",
            None,
            "Reference images: a folder or an npz of them, or a file of ldm-reference; "
            "the training images of the run if unset.",
        ),
        flags.DEFINE_string(
            "tokenizer",
            "openai/clip-vit-large-patch14",
            "CLIP's tokenizer for clip_score: a folder or a name on the Hugging Face "
            "hub.",
        ),
    )


def define_drawing_flags() -> tuple[flags.FlagHolder, ...]:
    """Defines flags of samples that are drawn to be measured; call it in a group.

    Returns:
      Holders of --label_mode and --eta.
    """
    return (
        flags.DEFINE_string(
            "label_mode",
            None,
            "Classes of samples: random, drawn independently, or balanced, each "
            "equally often; the protocol's, or random, if unset.",
        ),
        cli.shared("eta"),
    )


def comparison_of(metrics: Sequence[str]) -> Any:
    """Reads the flags that say how sets of images are measured.

    Args:
      metrics: Rows of SET_METRICS.

    Returns:
      A `compare.Comparison`.

    Raises:
      ConfigError: If a metric or --feature_weights is wrong.
    """
    from ldm_jax.config import choose
    from ldm_jax.evaluation.compare import Comparison
    from ldm_jax.metrics.set_metrics import SET_METRICS

    for name in metrics:
        choose(SET_METRICS, name, "--distances")
    values = flags.FLAGS
    return Comparison(
        metrics=metrics,
        outdir=as_path(values.outdir),
        weights=feature_weights(values.feature_weights),
        reference=values.reference,
        image_size=values.image_size,
        batch_size=values.batch_size,
        save_every=values.save_every,
        skip_unreadable=values.skip_unreadable,
    )


def plan_of(count: int | None, label_mode: str | None) -> Any:
    """Reads the flags that say which samples to draw.

    Args:
      count: Number of samples, see `drawn.Plan`.
      label_mode: Row of LABEL_MODES; None for random.

    Returns:
      A `drawn.Plan`.

    Raises:
      ConfigError: If the mode is unknown.
    """
    from ldm_jax.config import choose
    from ldm_jax.eval_samples import LABEL_MODES
    from ldm_jax.evaluation.drawn import Plan

    label_mode = label_mode or "random"
    choose(LABEL_MODES, label_mode, "--label_mode")
    values = flags.FLAGS
    return Plan(
        count,
        batch_size=values.batch_size,
        label_mode=label_mode,
        seed=values.seed,
        split=values.split,
        skip_unreadable=values.skip_unreadable,
    )


def sampling_of() -> dict[str, Any]:
    """Reads the sampler flags of commands that take one value of each.

    Returns:
      Names of options as in the config section `sample` -> values; None for the
      config's.

    Raises:
      ConfigError: If a value is wrong, as far as can be checked without a model.
    """
    from ldm_jax.sampling import options

    values = flags.FLAGS
    given = {name: values[name].value for name in ("sampler", "num_steps", "eta")}
    given["guidance_scale"] = options.parse_scale(values.guidance_scale)
    options.check_given(given)
    return given


def load_second_stage() -> Any:
    """Loads the model that a command's flags name.

    Returns:
      A `sampling.Trained`.

    Raises:
      ConfigError: If the workdir holds none, or a flag chooses conditions of a kind
        that the model is not conditioned on.
      CheckpointError: If it cannot be read.
    """
    from ldm_jax.sampling import load_model

    values = flags.FLAGS
    trained = load_model(
        values.workdir,
        step=values.step,
        average=values.ema,
        first_stage=values.first_stage,
        data_dir=values.data_dir,
    )
    refuse_conditions(trained.model)
    return trained


def refuse_conditions(model: Any) -> None:
    """Refuses flags that choose conditions which the model does not take.

    Args:
      model: A `LatentDiffusion`.

    Raises:
      ConfigError: If one of them is given.
    """
    from ldm_jax.eval_samples import needs_examples, planned_label

    takes = ", ".join(model.conditioner.entries) or "nothing"
    if planned_label(model) is None:
        why = f"classes are chosen for models of classes alone, and this takes {takes}"
        refuse(("label_mode",), why)
    if not needs_examples(model):
        why = f"examples give no condition, as the model takes {takes}"
        refuse(("split",), why)


def refuse(names: Iterable[str], why: str) -> None:
    """Refuses flags that would have no effect.

    Args:
      names: The flags.
      why: Why they have no effect, in words.

    Raises:
      ConfigError: If one of them is given.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name}: {why}; leave it out")


def check_used(metrics: Sequence[str], weights: Mapping[str, str]) -> None:
    """Refuses files of weights, a reference and captions that no metric would use.

    Args:
      metrics: Rows of SET_METRICS.
      weights: Row of FEATURES -> path of its file.

    Raises:
      ConfigError: If a file of weights is not used, or --reference or --tokenizer is
        given and no metric compares with a reference, or with captions.
    """
    from ldm_jax.metrics.features import FEATURES
    from ldm_jax.metrics.set_metrics import SET_METRICS

    rows, words = [SET_METRICS[name] for name in metrics], ",".join(metrics)
    used = {row.network for row in rows}
    # Some networks load the file of another one.
    known = used | {FEATURES[name].weights_of for name in used}
    for name in sorted(weights.keys() - known):
        use = f"uses {' and '.join(sorted(used))}" if used else "is not given"
        raise ConfigError(
            f"--feature_weights={name}={weights[name]}: --distances={words} {use}, "
            f"nothing would be measured with {name}; leave it out, or ask for a "
            "metric that needs it"
        )
    for flag, need, what in (
        ("reference", "needs_reference", "compares with one"),
        ("tokenizer", "needs_captions", "is of captions"),
    ):
        if flag in flags.FLAGS and not any(getattr(row, need) for row in rows):
            refuse((flag,), f"no metric of --distances={words} {what}")


def feature_weights(pairs: Sequence[str] | None) -> dict[str, str]:
    """Parses `--feature_weights`.

    Args:
      pairs: Strings like "inception=FILE", or None.

    Returns:
      Row of FEATURES -> path of its file.

    Raises:
      ConfigError: If one has another form, names no row, or repeats one.
    """
    from ldm_jax.config import choose
    from ldm_jax.metrics.features import FEATURES

    found = {}
    for pair in pairs or ():
        name, mark, path = pair.partition("=")
        if not mark or not path or name in found:
            raise ConfigError(
                f"--feature_weights={pair}: give NETWORK=FILE once for each network, "
                f"as {next(iter(FEATURES))}=FILE; the networks are "
                f"{', '.join(FEATURES)}"
            )
        choose(FEATURES, name, "--feature_weights")
        found[name] = path
    return found
