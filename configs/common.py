"""Defaults of all experiments.

Each function explains the keys of its section, or names the class that does, with its
file in `ldm_jax/`.  The networks have a `kind`, where there are several, and the fields
of their modules:

backbone: UNet in `models/unet.py`; kinds are rows of BACKBONES in
  `models/backbones.py`.
classifier: Classifier in `models/classifier.py`, and UNet in `models/unet.py`.
discriminator: PatchDiscriminator in `models/discriminator.py`.
first_stage: Of a first stage Autoencoder in `models/autoencoder.py`; kinds are rows of
  FIRST_STAGES in `models/first_stages.py`.

Entries of `conditions` are explained in `conditioners/`, and by docs/conditions.md.
`stage` says which of the three is trained, `seed` decides all that is drawn.

Learning rates are absolute and batch sizes are global.  A key whose value is
`placeholder(type)` is unset (None) until a config or the command line gives it a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def data(**changes) -> dict:
    """The `data` section, whose keys these explain.

    `_source`: Where examples come from.
    `_examples`: Which of them are taken, and what comes with their images.
    `_images`: What images are, and how they are cut.
    `_loading`: How they are loaded.

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
      shards their paths, as "shards/{00000..00099}.tar", "shards" or "shards/*.tar";
      for latents the --outdir of ldm-encode, whose splits are "train" and "validation".
    data_dir: Where prepared data sets lie; TFDS_DATA_DIR or ~/tensorflow_datasets.
    split, eval_split: Trained on and held out; "" evaluates nothing. All of a folder
      is trained on with split="all".
    eval_name: Where the held-out data are, if not in name: all of it is held out, and
      nothing of name. Of the sources "folder", "tar", "parquet" and "huggingface".
    validation_fraction: Fraction of a folder's files, of a tar's examples or of a
      table's rows that is held out.
    image_key, label_key: Features of a TensorFlow data set or columns of a table, where
      not the usual ones.
    caption_field: Field of `.json` that holds the captions of tar shards, where they
      are not in `.txt`.
    index_dir: Folder for the indexes of tar shards; unset keeps each beside its shard.
    subset, revision: Configuration and commit of a set on the Hugging Face hub.
    parts: Sources of a "mixture" by name: each has the keys above of its own, takes
      from this section what it does not say, and may have a weight (by default the
      number of its examples); as parts.photos.weight=0.3.
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
    """Which examples are taken, and what comes with their images.

    inputs: What is made of each example for the conditions, by batch key; the kinds and
      their options stand in `ldm_jax/data/inputs/`.
    keys: What examples shall hold besides what the inputs need.
    optional: What of it they may lack.
    box_names: Classes of a folder's boxes; without, boxes are labelled by numbers.
    filter: Which examples to take, by what is known of them without reading the images,
      as 'aesthetic > 5 and width >= 512 and language == "en"'; docs/data.md.
    text_states: Whether latents come with what frozen text towers made of captions, as
      ldm-encode --text_states stores it, in place of token ids.
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
    """What images are, and how they are cut.

    image_size: Height and width in pixels that images are cut and resized to.
    crop: "center" or "random", of the largest square.
    min_crop: In training a crop, at the centre too, has a random fraction from min_crop
      to 1 of that square's side.
    flip: Whether every second training image, at random, is mirrored.
    buckets: Shapes of training batches beside squares of image_size: step, what sides
      are multiples of (64), max_ratio of the sides (2.0), and sizes, tiers of so many
      pixels squared (image_size alone); empty for squares.
    channels: "grey", "rgb" or "rgba", to which images are converted, or a number of
      channels of any meaning, as of `.npy` and pages of TIFF; "rgb" where unset. The
      first stage's `image_channels` follow.
    pixel_type: Type of a batch, "uint8", "uint16" or "float32"; where unset uint8, and
      float32 of a number of channels.
    value_range: Values of files that are black and white, as (0, 4095); the range of
      their integers where unset, and floats need it.
    rgb_channels: Which of many channels are shown, compared by LPIPS and measured as
      RGB: three numbers from 0 on, or one, or "mean"; the first three by default.
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

    workers: Processes that load; 0 loads in threads, as latents always are.
    restart_workers: How often they are started anew, on the same batches, where one of
      them was killed; 0 saves and ends the run.
    on_error: "skip" or "raise" at an example that cannot be read, or whose conditions
      the model does not take.
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
    freeze: Paths of parameters that stay as they are, as "autoencoder/encoder"; of a
      first stage "latents" is all that makes its latents.
    learning_rate: Peak learning rate, absolute.
    decay: "constant", "linear" or "cosine", rows of DECAYS in `training/optimizer.py`.
    warmup_steps: Steps over which the rate rises linearly to its peak.
    decay_steps: Step at which the decay ends; the end of the run where unset.
    start_factor: Factor of the peak at step 0, where there is a warm-up.
    end_factor: Factor of the peak at the end of the decay.
    optimizer: "kind", "adamw" or "adam", a row of OPTIMIZERS, with the decays of its
      two moments b1 and b2, its eps, and weight_decay, which "adamw" alone takes.
    grad_clip: Largest global norm of the gradients; unset or 0 is off.
    accumulate_steps: Micro-batches of a step: less memory, and one update.
    ema_decay: Decay of the moving average of the weights, which is what is evaluated
      and sampled; unset keeps none.
    log_every: Steps between lines of the log.
    eval_every: Steps between evaluations over held-out images; 0 or unset is off.
    eval_batches: Batches of an evaluation; all held-out images where unset.
    preview_every: Steps between previews; 0 or unset is off.
    preview_images: How many images a preview shows; 0 turns previews off.
    checkpoint_every: Steps between checkpoints; 0 or unset saves the last step alone.
    keep_last: How many of the newest checkpoints stay.
    keep_every: Checkpoints of steps that it divides stay for ever; unset keeps no more.
    mesh: Devices along "data", over which the batch is split (-1 is all others), and
      "fsdp", over which large parameters are, too.
    sharding_overrides: Pairs of a regular expression over the paths of parameters, and
      the axis to split over "fsdp", or None for a copy on each device; the first match
      counts.
    wandb: Whether to log to Weights & Biases, too (extra `wandb`).

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

    sampler: A row of SAMPLERS, as "dpmpp_2m", "unipc" or, for rectified flow,
      "flow_euler".
    num_steps: Steps of the grid of noise levels.
    guidance_scale: Scale of classifier-free guidance; 1 is off.
    eta: Fraction of the ancestral noise, for the samplers that take it.
    spacing: A row of SPACINGS, as "trailing" or "karras". Schedules that end in pure
      noise, by zero_terminal_snr and rectified_flow, need "trailing" or a "linspace";
      a warning names what starts below.
    final_level: "clean" or "first", where not the spacing's own.
    shift: More than 1 spends more steps at high noise, for larger sizes.

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
    """The `eval` section: what a run measures of its samples, and when.

    A first stage's reconstructions of held-out images take the place of samples.

    every: Steps between measurements, and at the end; unset measures nothing.
    num_samples: How many samples; published numbers are of 50,000.
    batch_size: How many are drawn at a time, over all devices.
    distances: Metrics of sets: rows of SET_METRICS, as "fid", "kid" or
      "precision_recall"; "rfid" is that of reconstructions, "frechet" a quick one
      that needs no weights.
    weights: Files of the weights of the feature networks inception, dinov2 and clip;
      random ones where unset, and then the numbers are random-features distances.
    reference: File of reference statistics, of ldm-reference; "" makes them once of
      the run's own images: training ones, of a first stage those it reconstructs.
    reference_images: How many of those training images, evenly spaced; all if unset.
    label_mode: "random" or "balanced" labels, where a class is the only condition.
    best: The result, as "fid", by which the best checkpoint is kept beside the newest.
    levels: Bins of noise levels for which each evaluation of train.eval_every reports
      the loss; 0 for none.

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
    """The `loss` section of a second stage; values are CompVis's.

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

    Values are CompVis's, "gumbel"'s those of Ramesh et al. 2021; LossOptions in
    `training/loss_options.py` explains each.  Against a loss that blows up when the
    discriminator starts: disc_ramp_steps of some thousands, a lower disc_weight_cap,
    disc_grad_clip=1, lecam_weight or r1_weight.  Against codes that are never used:
    restart_threshold=0.1, codebook_ema_decay=0.99, first_stage.quantizer="cosine".

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
    """Makes a config that trains a second stage on the latents of a first one.

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
    """The `first_stage` section of a second stage: which trained one to use.

    workdir: Where the first stage was trained; its structure is read from there.
      "identity" is none: diffusion on pixels, LDM-1 of the paper.
    step: Its checkpoint; the newest where unset.
    scaling_factor: Multiplies the latents, all channels alike, as in the paper.
    latents_mean, latents_std: Mean and standard deviation per channel, in its place.
    latent_statistics: What is measured where none is given: "scalar" for a
      scaling_factor, "per_channel" for the other two.
    scaling_batches: Over how many batches that is measured.

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

    make_schedule in `diffusion/schedule.py` explains its keys but for the last, and
    which kinds take beta_start and beta_end.

    kind: "rectified_flow" goes with prediction_type="velocity".
    zero_terminal_snr: Ends in pure noise; goes with prediction_type="v".
    prediction_type: What the network predicts, a row of PREDICTION_TYPES: "noise",
      which others call epsilon, "x0", "v" or "velocity".

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
      words: What may follow a row.

    Returns:
      (row, other words); the row is None where there are none.

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
    """Applies what `parse_variant` found beside the row.

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
    """Freezes all that makes latents: a second stage trained on them stays valid.

    Args:
      config: ConfigDict, changed in place.
    """
    config.train.freeze = ("latents",)
    # Its discriminator comes from the run that it goes on from.
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
        # So that a run cut by num_steps=2 and one of 4 take the same steps.
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
    """Applies `shrink_train`, makes a denoiser tiny and its conditions, too.

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
    """Changes what entries set, not what they leave to the data set."""
    for entry in section.values():
        for key, value in table.get(entry.kind, {}).items():
            if entry.get(key) is not None:
                with entry.ignore_type():
                    entry[key] = value


def _shrink_condition(entry):
    """Lowers the numbers that an entry sets; what may follow from others is unset."""
    for option, most in _TINY_CONDITION.items():
        if entry.get(option) is not None:
            entry[option] = min(entry[option], most)
    unset = ["vocab_size", "max_length", "null_ids"]
    if entry.get("slot") == "vector":
        # As wide as the toy of the backbone has it.
        unset.append("features")
    for option in unset:
        if entry.get(option) is not None:
            with entry.ignore_type():
                entry[option] = None


# The fields of a toy by kind of backbone, where they are written out to be changed
# further; `tiny` takes those that the kind itself has for a toy.
_TINY_BACKBONES = {
    "unet": dict(
        channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        # The middle attends always.
        attention_factors=(),
        norm_groups=8,
        dtype="float32",
    )
}
# The largest numbers of a toy's conditions; `shapes` has 8 classes and a background.
_TINY_CONDITION = dict(features=32, num_layers=1, num_stages=1, num_classes=9)
# What is made of the data set `shapes` for conditions; its boxes stand for a feature.
_TINY_INPUTS = {
    "caption": dict(tokenizer="shapes", max_length=16),
    "layout": dict(vocab_size=80, max_objects=4),
    "low_res": dict(factor=2),
    "feature": dict(feature="boxes"),
}

# What may follow a row in the variant of a first stage.
_WORDS = {"decoder": decoder_alone, "tiny": shrink_autoencoder}
