"""Defaults of all experiments.

Each function explains the keys of its section, or names the class that does, with its
file in `ldm_jax/`.  The section of a network has a `kind`, where there are several
kinds, and the fields of its module:

backbone: UNet in `models/unet.py`; kinds are rows of BACKBONES in
  `models/backbones.py`.
classifier: Classifier in `models/classifier.py`, and UNet in `models/unet.py`.
discriminator: PatchDiscriminator in `models/discriminator.py`.
first_stage: To train a first stage, Autoencoder in `models/autoencoder.py`; kinds are
  rows of FIRST_STAGES in `models/first_stages.py`.

Entries of `conditions` are explained in `conditioners/` and in docs/conditions.md.
`stage` is the stage to train: "autoencoder", "diffusion" or "classifier".  `seed` is
the seed of everything random.

Learning rates are absolute and batch sizes are global.  A key whose value is
`placeholder(type)` is unset (None) until a config or the command line gives it a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def data(**changes) -> dict:
    """The `data` section; its keys are explained by four functions.

    `_source`: Where examples come from.
    `_examples`: Which examples are used, and what accompanies their images.
    `_images`: Format of the images, and how they are cropped.
    `_loading`: How examples are loaded.

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    return _source() | _examples() | _images() | _loading() | changes


def _source():
    """Where examples come from.

    source: "tfds" (a prepared TensorFlow data set), "folder" (image files), "tar"
      (shards in the layout of WebDataset), "parquet" (Parquet files), "huggingface"
      (a folder of save_to_disk, or a set on the hub), "mixture" (of several), or
      "latents" (images that ldm-encode has encoded).
    name: Name of the data set, for example "shapes/64"; for a folder its path; for
      shards their paths, e.g. "shards/{00000..00099}.tar", "shards" or "shards/*.tar";
      for latents the --outdir of ldm-encode, whose splits are "train" and "validation".
    data_dir: Folder of the prepared data sets; by default TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    split, eval_split: Training split and held-out split; eval_split="" turns evaluation
      off. With split="all" a whole folder is trained on.
    eval_name: Name of the held-out data, if they are not part of `name`: all of
      eval_name is held out, and nothing of `name`. For the sources "folder", "tar",
      "parquet" and "huggingface".
    validation_fraction: Fraction of a folder's files, a tar's examples or a table's
      rows that is held out.
    image_key, label_key: Features of a TensorFlow data set or columns of a table, if
      not the usual ones.
    caption_field: Field of `.json` that holds the captions of tar shards, if they are
      not in `.txt`.
    index_dir: Folder for the indexes of tar shards; by default each is kept beside its
      shard.
    subset, revision: Configuration and commit of a data set on the Hugging Face hub.
    parts: Sources of a "mixture" by name. Each may set the keys above, inherits those
      that it does not set from this section, and may have a weight (by default the
      number of its examples), e.g. parts.photos.weight=0.3.
    """
    return dict(
        source="tfds",
        name="",
        data_dir=placeholder(str),
        split="train",
        eval_split="validation",
        eval_name=placeholder(str),
        validation_fraction=0.05,
        image_key=placeholder(str),
        label_key=placeholder(str),
        caption_field=placeholder(str),
        index_dir=placeholder(str),
        subset=placeholder(str),
        revision=placeholder(str),
        parts=dict(),
    )


def _examples():
    """Which examples are used, and what accompanies their images.

    inputs: Inputs of the conditions, made from each example, by batch key; their kinds
      and options are explained in `ldm_jax/data/inputs/`.
    keys: Keys that examples must have besides those that the inputs need.
    optional: Keys that an example may lack.
    box_names: Names of the classes of boxes; by default boxes are labelled by numbers.
    filter: Expression that selects examples by metadata, without reading the images,
      e.g. 'aesthetic > 5 and width >= 512 and language == "en"'; see docs/data.md.
    text_states: Whether latents come with the outputs of the frozen text encoders, as
      stored by ldm-encode --text_states, instead of token ids.
    """
    return dict(
        inputs=dict(),
        keys=(),
        optional=(),
        box_names=(),
        filter=placeholder(str),
        text_states=False,
    )


def _images():
    """Format of the images, and how they are cropped.

    image_size: Height and width in pixels that images are cropped and resized to.
    crop: "center" or "random": which square of the largest size to crop.
    min_crop: The side of a training crop, centred or random, is a random fraction, from
      min_crop to 1, of that of the largest square.
    flip: Whether each training image is mirrored with probability 1/2.
    buckets: Aspect-ratio buckets, i.e. shapes of training batches besides squares of
      image_size: step, of which sides are multiples (64), max_ratio of the sides (2.0),
      and sizes, the areas of the buckets as sides of squares in pixels (image_size
      alone); empty for squares only.
    channels: "grey", "rgb" or "rgba", to which images are converted, or a number of
      channels of any meaning, e.g. of `.npy` files or pages of a TIFF; "rgb" by
      default. The first stage's `image_channels` is set accordingly.
    pixel_type: Type of a batch, "uint8", "uint16" or "float32"; by default "float32" if
      `channels` is a number, else "uint8".
    value_range: Values in the files that are black and white, e.g. (0, 4095); by
      default the range of the integer type. Files of floats need it.
    rgb_channels: Which of many channels are shown, compared by LPIPS and used for
      metrics as RGB: three indices from 0, or one, or "mean"; by default the first
      three.
    """
    return dict(
        image_size=64,
        crop="center",
        min_crop=1.0,
        flip=False,
        buckets=dict(),
        channels=placeholder(str),
        pixel_type=placeholder(str),
        value_range=placeholder(tuple),
        rgb_channels=(),
    )


def _loading():
    """How examples are loaded.

    workers: Number of loading processes; 0 loads in threads. Latents are always loaded
      in threads.
    restart_workers: How often workers are restarted, on the same batches, when one of
      them was killed; with 0 the run saves and ends.
    on_error: "skip" or "raise" on an example that cannot be read, or whose conditions
      the model does not accept.
    max_image_gb: Memory that reading one image may take, in 10^9 bytes.
    cache_gb: Memory for row groups of Parquet files in each process, in 10^9 bytes.
    """
    return dict(
        workers=0,
        restart_workers=0,
        on_error="skip",
        max_image_gb=1.0,
        cache_gb=1.0,
    )


def train(**changes) -> dict:
    """The `train` section: the loop, the optimiser and the mesh.

    batch_size: Images per step, over all devices and processes.
    num_steps: Steps of the whole run.
    init_from: Workdir of a run of the same stage whose weights a new run starts from.
    freeze: Paths of parameters that are not trained, e.g. "autoencoder/encoder"; for a
      first stage "latents" freezes everything that its latents depend on.
    learning_rate: Peak learning rate, absolute.
    decay: "constant", "linear" or "cosine", rows of DECAYS in `training/optimizer.py`.
    warmup_steps: Steps over which the learning rate rises linearly to its peak.
    decay_steps: Step at which the decay ends; by default the end of the run.
    start_factor: Learning rate at step 0 as a fraction of the peak, if there is a
      warm-up.
    end_factor: Learning rate at the end of the decay as a fraction of the peak.
    optimizer: "kind", "adamw" or "adam", a row of OPTIMIZERS, with the decay rates b1
      and b2 of its moments, its eps, and weight_decay, for "adamw" only.
    grad_clip: Maximum global norm of the gradients; unset or 0 is off.
    accumulate_steps: Micro-batches per step, i.e. gradient accumulation: less memory,
      and one update.
    ema_decay: Decay of the moving average (EMA) of the weights, which is used for
      evaluation and sampling; unset keeps none.
    log_every: Steps between lines of the log.
    eval_every: Steps between evaluations on held-out images; 0 or unset is off.
    eval_batches: Batches per evaluation; by default all held-out images.
    preview_every: Steps between previews; 0 or unset is off.
    preview_images: Number of images in a preview; 0 turns previews off.
    checkpoint_every: Steps between checkpoints; 0 or unset saves the last step only.
    keep_last: Number of newest checkpoints to keep.
    keep_every: Checkpoints of steps divisible by it are kept for ever; unset keeps no
      others.
    mesh: Number of devices along "data", over which the batch is split (-1 is all
      others), and along "fsdp", over which large parameters are split, too.
    sharding_overrides: Pairs of a regular expression over the paths of parameters, and
      the axis to split over "fsdp", or None for a copy on each device; the first match
      counts.
    wandb: Whether to also log to Weights & Biases (extra `wandb`).

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        batch_size=64,
        num_steps=1000,
        init_from="",
        freeze=(),
        learning_rate=1e-4,
        decay="constant",
        warmup_steps=0,
        decay_steps=placeholder(int),
        start_factor=0.0,
        end_factor=0.0,
        optimizer=dict(kind="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01),
        grad_clip=placeholder(float),
        accumulate_steps=1,
        ema_decay=placeholder(float),
        log_every=100,
        eval_every=1000,
        eval_batches=placeholder(int),
        preview_every=1000,
        preview_images=16,
        checkpoint_every=1000,
        keep_last=2,
        keep_every=placeholder(int),
        mesh=dict(data=-1, fsdp=1),
        sharding_overrides=(),
        wandb=False,
    )
    return section | changes


def sample(**changes) -> dict:
    """The `sample` section: how previews are drawn, and the defaults of sample.py.

    sampler: A row of SAMPLERS, e.g. "dpmpp_2m", "unipc" or, for rectified flow,
      "flow_euler".
    num_steps: Number of sampling steps.
    guidance_scale: Scale of classifier-free guidance; 1 is off.
    eta: Fraction of the ancestral noise, for samplers that take it.
    spacing: A row of SPACINGS, e.g. "trailing" or "karras". Schedules that end in pure
      noise (zero_terminal_snr or rectified_flow) need "trailing" or a "linspace"; with
      others a warning is logged, as they start below pure noise.
    final_level: Where the last step leads: "clean" data, or the "first" (least noisy)
      level of training; by default that of the spacing.
    shift: Values above 1 spend more steps at high noise, for larger images.

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        sampler="ddim",
        num_steps=50,
        guidance_scale=1.0,
        eta=placeholder(float),
        spacing="uniform",
        final_level=placeholder(str),
        shift=1.0,
    )
    return section | changes


def evaluation(**changes) -> dict:
    """The `eval` section: which sample metrics a run computes, and when.

    For a first stage, reconstructions of held-out images take the place of samples.

    every: Steps between evaluations of samples; there is one at the end, too. Unset is
      off.
    num_samples: Number of samples; published numbers are for 50,000.
    batch_size: Samples drawn at a time, over all devices.
    distances: Set metrics, rows of SET_METRICS, e.g. "fid", "kid" or
      "precision_recall"; "rfid" is the FID of reconstructions, "frechet" a quick
      distance that needs no weights.
    weights: Files of the weights of the feature networks inception, dinov2 and clip;
      if unset they are random, and the numbers are random-features distances.
    reference: File of reference statistics, made by ldm-reference; "" computes them
      once from the run's own images: training images, or for a first stage the images
      that it reconstructs.
    reference_images: Number of those training images, evenly spaced; all if unset.
    label_mode: "random" or "balanced" labels, if a class is the only condition.
    best: Metric, e.g. "fid", by which the best checkpoint is kept besides the newest.
    levels: Number of bins of noise levels for which each evaluation of train.eval_every
      reports the loss; 0 for none.

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        every=placeholder(int),
        num_samples=5000,
        batch_size=64,
        distances=("fid",),
        weights=dict(
            inception=placeholder(str),
            dinov2=placeholder(str),
            clip=placeholder(str),
        ),
        reference="",
        reference_images=placeholder(int),
        label_mode="random",
        best=placeholder(str),
        levels=10,
    )
    return section | changes


def diffusion_loss(**changes) -> dict:
    """The `loss` section of a second stage; the default values are CompVis's.

    Objective in `diffusion/objective.py` explains each. Known to help: min_snr_gamma
    of 5 (Hang et al. 2023), offset_noise of 0.1 for very dark and bright images, and
    timestep_sampling="logit_normal" with rectified flow (Esser et al. 2024).

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        loss_type="l2",
        elbo_weight=0.0,
        learn_logvar=False,
        min_snr_gamma=placeholder(float),
        offset_noise=0.0,
        timestep_sampling="uniform",
        logit_mean=0.0,
        logit_std=1.0,
    )
    return section | changes


def autoencoder_loss(**changes) -> dict:
    """The `loss` section of a first stage (CompVis's LPIPSWithDiscriminator).

    The default values are CompVis's, those for "gumbel" from Ramesh et al. 2021;
    LossOptions in `training/loss_options.py` explains each.  If the loss diverges when
    the discriminator starts, try disc_ramp_steps of a few thousand, a lower
    disc_weight_cap, disc_grad_clip=1, lecam_weight or r1_weight.  If codes are never
    used, try restart_threshold=0.1, codebook_ema_decay=0.99 or
    first_stage.quantizer="cosine".

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        reconstruction="l1",
        reduction=placeholder(str),
        lpips_weights="",
        perceptual_weight=placeholder(float),
        logvar_init=0.0,
        learn_logvar=False,
        kl_weight=1e-6,
        codebook_weight=placeholder(float),
        codebook_beta=0.25,
        codebook_legacy=True,
        codebook_ema_decay=placeholder(float),
        restart_threshold=0.0,
        gumbel_temperature=1.0,
        gumbel_end_temperature=1 / 16,
        gumbel_steps=150_000,
        disc_start=50001,
        disc_weight=0.5,
        disc_loss="hinge",
        disc_factor=1.0,
        disc_ramp_steps=0,
        disc_weight_cap=1e4,
        disc_learning_rate=placeholder(float),
        disc_grad_clip=placeholder(float),
        r1_weight=0.0,
        lecam_weight=0.0,
    )
    return section | changes


def autoencoder(**sections) -> ConfigDict:
    """Makes a config that trains a first stage.

    Args:
      **sections: Sections that replace the defaults.

    Returns:
      ConfigDict.
    """
    config = dict(
        stage="autoencoder",
        seed=0,
        data=data(),
        first_stage=dict(kind="kl"),
        discriminator=dict(channels=64, num_layers=3, norm="batch", dtype="float32"),
        loss=autoencoder_loss(),
        train=train(),
        eval=evaluation(distances=("rfid",)),
    )
    return ConfigDict(config | sections)


def diffusion(**sections) -> ConfigDict:
    """Makes a config that trains a second stage on the latents of a first stage.

    Args:
      **sections: Sections that replace the defaults.

    Returns:
      ConfigDict.
    """
    config = dict(
        stage="diffusion",
        seed=0,
        data=data(),
        first_stage=first_stage(),
        conditions=dict(),
        schedule=schedule(),
        loss=diffusion_loss(),
        train=train(),
        sample=sample(),
        eval=evaluation(),
    )
    sections["backbone"] = dict(kind="unet") | sections.get("backbone", {})
    return ConfigDict(config | sections)


def classifier(**sections) -> ConfigDict:
    """Makes a config that trains a classifier of noisy latents, for guidance.

    Its `first_stage` and `schedule` must be those of the second stage that it guides.

    Args:
      **sections: Sections that replace the defaults.

    Returns:
      ConfigDict.
    """
    config = dict(
        stage="classifier",
        seed=0,
        data=data(),
        first_stage=first_stage(),
        classifier=dict(),
        schedule=schedule(),
        train=train(preview_images=0),
    )
    return ConfigDict(config | sections)


def first_stage(**changes) -> dict:
    """The `first_stage` section of a second stage: which trained first stage to use.

    workdir: Workdir of the trained first stage; its structure is read from there.
      "identity" uses none: diffusion on pixels, LDM-1 of the paper.
    step: Step of its checkpoint; by default the newest.
    scaling_factor: Factor of the latents, the same for all channels, as in the paper.
    latents_mean, latents_std: Mean and standard deviation per channel, instead of
      scaling_factor.
    latent_statistics: What to measure if none of these are given: "scalar" for
      scaling_factor, "per_channel" for latents_mean and latents_std.
    scaling_batches: Number of batches to measure them on.

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        workdir="",
        step=placeholder(int),
        scaling_factor=placeholder(float),
        latents_mean=placeholder(tuple),
        latents_std=placeholder(tuple),
        latent_statistics="scalar",
        scaling_batches=16,
    )
    return section | changes


def schedule(**changes) -> dict:
    """The `schedule` section; `scaled_linear` is what CompVis calls linear.

    make_schedule in `diffusion/schedule.py` explains all keys but prediction_type, and
    which kinds take beta_start and beta_end.

    kind: "rectified_flow" goes with prediction_type="velocity".
    zero_terminal_snr: Ends in pure noise; goes with prediction_type="v".
    prediction_type: What the network predicts, a row of PREDICTION_TYPES: "noise"
      (called epsilon elsewhere), "x0", "v" or "velocity".

    Args:
      **changes: Keys of the section and their values.

    Returns:
      Dict.
    """
    section = dict(
        kind="scaled_linear",
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        zero_terminal_snr=False,
        prediction_type="noise",
    )
    return section | changes


def parse_variant(
    variant: str,
    rows: dict | tuple = (),
    words: tuple = ("decoder", "tiny"),
) -> tuple[str | None, list[str]]:
    """Splits a variant, for example "f8,tiny".

    Args:
      variant: Words joined by commas: a row and some of `words`.
      rows: Names of the rows; the first is the default.
      words: Words that may follow a row.

    Returns:
      (row, other words); the row is None if there are no rows.

    Raises:
      ValueError: On an unknown word, or on several rows.
    """
    given = [word for word in variant.split(",") if word]
    known = [*rows, *words]
    for word in given:
        if word not in known:
            raise ValueError(
                f'variant "{word}" is unknown; choose from {", ".join(known)}'
            )
    chosen = [word for word in given if word in rows] or [*rows][:1]
    if len(chosen) > 1:
        raise ValueError(f'variant "{variant}" names several rows: keep one')
    return chosen[0] if chosen else None, [word for word in given if word in words]


def vary_autoencoder(config: ConfigDict, words: list) -> ConfigDict:
    """Applies the words that `parse_variant` found besides the row.

    Args:
      config: ConfigDict of a first stage, changed in place.
      words: "decoder" and "tiny", both or neither.

    Returns:
      The config.
    """
    for word in words:
        _WORDS[word](config)
    return config


def decoder_alone(config: ConfigDict) -> None:
    """Freezes all that latents depend on: a second stage trained on them stays valid.

    Args:
      config: ConfigDict, changed in place.
    """
    config.train.freeze = ("latents",)
    # The discriminator is already trained: it is taken from the run in train.init_from.
    config.loss.disc_start = 0


def shrink_train(config: ConfigDict) -> None:
    """Turns a config into a toy on the `shapes` data set: seconds on a laptop.

    Args:
      config: ConfigDict, changed in place.
    """
    config.data.update(
        source="tfds",
        name="shapes/32",
        split="train",
        eval_split="validation",
        image_size=32,
        workers=0,
    )
    config.train.update(
        batch_size=8,
        num_steps=4,
        warmup_steps=0,
        start_factor=0.0,
        # So that a run stopped with num_steps=2 and one of 4 take the same steps.
        decay="constant",
        decay_steps=None,
        end_factor=0.0,
        log_every=2,
        eval_every=4,
        eval_batches=1,
        preview_every=4,
        preview_images=8,
        checkpoint_every=2,
    )


def shrink_autoencoder(config: ConfigDict) -> None:
    """Applies `shrink_train` and makes the networks of a first stage tiny.

    Args:
      config: ConfigDict, changed in place.
    """
    shrink_train(config)
    first = config.first_stage
    first.update(
        channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        norm_groups=8,
        dtype="float32",
    )
    if "num_codes" in first:
        first.num_codes = 32
    config.discriminator.update(channels=8, num_layers=1)
    config.loss.update(disc_start=1, lpips_weights="", perceptual_weight=0.0)


def shrink_diffusion(config: ConfigDict) -> None:
    """Applies `shrink_train` and makes a denoiser and its conditions tiny.

    Args:
      config: ConfigDict, changed in place.
    """
    shrink_train(config)
    for entry in config.conditions.values():
        _shrink_condition(entry)
    _shrink(config.data.get("inputs", {}), _TINY_INPUTS)
    config.eval.levels = 0
    config.backbone.update(_TINY_BACKBONES.get(config.backbone.kind, {"tiny": True}))
    config.sample.num_steps = 4
    config.first_stage.scaling_batches = 2


def shrink_classifier(config: ConfigDict) -> None:
    """Applies `shrink_train` and makes a classifier tiny.

    Args:
      config: ConfigDict, changed in place.
    """
    shrink_train(config)
    config.first_stage.scaling_batches = 2
    config.train.preview_images = 0
    config.classifier.update(
        channels=16, num_res_blocks=1, norm_groups=8, dtype="float32"
    )


def _shrink(section, table):
    """Changes keys that entries set, not those that they leave to the data set."""
    for entry in section.values():
        for key, value in table.get(entry.kind, {}).items():
            if entry.get(key) is not None:
                with entry.ignore_type():
                    entry[key] = value


def _shrink_condition(entry):
    """Lowers the numbers that an entry sets; unsets those that can be derived."""
    for option, most in _TINY_CONDITION.items():
        if entry.get(option) is not None:
            entry[option] = min(entry[option], most)
    unset = ["vocab_size", "max_length", "null_ids"]
    if entry.get("slot") == "vector":
        # Follows the width of the tiny backbone.
        unset.append("features")
    for option in unset:
        if entry.get(option) is not None:
            with entry.ignore_type():
                entry[option] = None


# Kind of backbone -> fields of a toy, written out so that they can be changed further;
# for other kinds `tiny` takes the toy that the kind itself defines.
_TINY_BACKBONES = {
    "unet": dict(
        channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        # The middle block always has attention.
        attention_factors=(),
        norm_groups=8,
        dtype="float32",
    )
}
# The largest numbers of a toy's conditions; `shapes` has 8 classes and a background.
_TINY_CONDITION = dict(features=32, num_layers=1, num_stages=1, num_classes=9)
# Inputs for the data set `shapes`; its boxes are used in place of a feature.
_TINY_INPUTS = {
    "caption": dict(tokenizer="shapes", max_length=16),
    "layout": dict(vocab_size=80, max_objects=4),
    "low_res": dict(factor=2),
    "feature": dict(feature="boxes"),
}

# Words that may follow a row in the variant of a first stage.
_WORDS = {"decoder": decoder_alone, "tiny": shrink_autoencoder}
