"""Limits on configs of other programs, checked before anything is built.

A few bytes of YAML or JSON can ask for a billion layers, or expand without bound by
aliases of aliases. Published configs stay far below these limits.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from ldm_jax.errors import ConversionError
from ldm_jax.reading import read_file
from ldm_jax.store import Place, raise_if_silent

# Published configs have some kilobytes; PyYAML reads about 100 per second.
_MAX_YAML_BYTES, _MAX_YAML_VALUES = 256 << 10, 20_000

# Name of an option in the configs of CompVis, diffusers or transformers -> minimum and
# maximum of each number under that name.
_SIDE, _WIDTH, _DEPTH = (1, 65_536), (1, 65_536), (0, 256)
_LIMITS = {
    **dict.fromkeys(
        (
            *("model_channels", "ch", "block_out_channels", "in_channels"),
            *("out_channels", "out_ch", "z_channels", "latent_channels", "embed_dim"),
            *("context_dim", "cross_attention_dim", "hidden_size", "d_model"),
            *("intermediate_size", "encoder_ffn_dim", "vq_embed_dim", "n_embd"),
        ),
        _WIDTH,
    ),
    **dict.fromkeys(
        (
            *("num_res_blocks", "layers_per_block", "transformer_depth"),
            *("transformer_layers_per_block", "num_hidden_layers", "encoder_layers"),
            *("n_layer",),
        ),
        _DEPTH,
    ),
    **dict.fromkeys(("image_size", "sample_size", "resolution"), _SIDE),
    **dict.fromkeys(("max_seq_len", "max_position_embeddings"), (1, 8192)),
    **dict.fromkeys(("vocab_size", "n_classes", "num_classes"), (1, 1 << 24)),
    **dict.fromkeys(("num_class_embeds", "num_vq_embeddings"), (1, 1 << 24)),
    **dict.fromkeys(("timesteps", "num_train_timesteps"), (2, 100_000)),
    **dict.fromkeys(
        ("num_heads", "num_head_channels", "num_heads_upsample"), (-1, 65_536)
    ),
    **dict.fromkeys(
        ("num_attention_heads", "attention_head_dim", "encoder_attention_heads"),
        _WIDTH,
    ),
    **dict.fromkeys(("head_dim", "norm_num_groups"), _WIDTH),
    "n_stages": (0, 16),
    **dict.fromkeys(("ch_mult", "channel_mult"), (1e-3, 1024)),
    **dict.fromkeys(("attention_resolutions", "attn_resolutions"), _SIDE),
}
_MAX_ITEMS = 32
# Computing the shapes of this many takes about ten seconds.
_MAX_BLOCKS, _MAX_LEVELS = 1000, 16


def check_numbers(config: Any, where: str) -> None:
    """Checks every number of a config whose name is known, at any depth.

    Args:
      config: Contents of a JSON or YAML file.
      where: Name of the file, for messages.

    Raises:
      ConversionError: If a value is out of range or not a number.
    """
    stack = [config]
    while stack:
        found = stack.pop()
        if isinstance(found, list | tuple):
            stack += found
        elif isinstance(found, Mapping):
            stack += found.values()
            for name, value in found.items():
                if name in _LIMITS and value is not None:
                    _check_number(name, value, where)


def _check_number(name, value, where):
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) > _MAX_ITEMS:
        raise ConversionError(
            f"{where}: {name} has {len(values)} values, more than {_MAX_ITEMS}"
        )
    low, high = _LIMITS[name]
    for number in values:
        # Numbers of transformer layers may be listed per block.
        if isinstance(number, list | tuple) and name == "transformer_layers_per_block":
            _check_number(name, number, where)
            continue
        real = isinstance(number, int | float) and not isinstance(number, bool)
        if not real or not low <= number <= high:
            raise ConversionError(
                f"{where}: {name} must be a number from {low:g} to {high:g}, got "
                f"{number!r:.80}"
            )


def check_layers(section: Mapping[str, Any], name: str) -> None:
    """Checks the number of blocks of a network, before their shapes are computed.

    Args:
      section: Config section of a U-Net or a first stage.
      name: Name of the section, for messages.

    Raises:
      ConversionError: If there are more than in any published network.
    """
    levels = len(section.get("channel_mult", ()))
    counts, depths = (
        list(value) if isinstance(value, list | tuple) else [value] * levels
        for value in (
            section.get("num_res_blocks", 0),
            section.get("transformer_depth", 0),
        )
    )
    blocks = 2 * sum(n * (1 + max(depths, default=0)) for n in counts)
    if levels > _MAX_LEVELS or blocks > _MAX_BLOCKS:
        raise ConversionError(
            f"{name} has {blocks:,} blocks on {levels} levels, more than "
            f"{_MAX_BLOCKS:,} or {_MAX_LEVELS}, which no published network has"
        )


def read_yaml_file(path: Place) -> Any:
    """Reads a YAML file of bounded size, its aliases expanded.

    Args:
      path: The file.

    Returns:
      Its contents, as plain values.

    Raises:
      ConversionError: If it cannot be read, or is too large or nested too deep.
    """
    try:
        text = read_file(path, _MAX_YAML_BYTES).decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if _expanded(node, {}) > _MAX_YAML_VALUES:
            raise ConversionError(
                f"cannot read {path}: with its aliases expanded it holds more than "
                f"{_MAX_YAML_VALUES:,} values, which no config does"
            )
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise_if_silent(path, error)
        text = " ".join(str(error).split())
        raise ConversionError(f"cannot read {path}: {text}") from error
    except RecursionError as error:
        raise ConversionError(f"cannot read {path}: it is nested too deep") from error
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        # A value that does not match its tag, such as a date with day 40.
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"cannot read {path}: {error}") from error


def _expanded(node, sizes):
    """Number of values in a node with aliases expanded, each use counted."""
    key = id(node)
    if key not in sizes:
        # A node that contains itself is infinite.
        sizes[key] = _MAX_YAML_VALUES + 1
        size = 1
        if isinstance(node, yaml.SequenceNode):
            size += sum(_expanded(item, sizes) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            size += sum(_expanded(item, sizes) for pair in node.value for item in pair)
        sizes[key] = size
    return sizes[key]
