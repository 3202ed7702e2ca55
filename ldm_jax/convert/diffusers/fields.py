"""All known fields of a config.json, by class, for networks and text encoders.

A field is either read into a section of our configs, or limited to the values that our
networks support, or without effect on what a network computes. Any other field is an
error, as its effect is unknown. Missing fields have the defaults of diffusers' class.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ldm_jax.errors import ConversionError


class Fields(NamedTuple):
    """The fields of one class.

    Attributes:
      read: Name -> the class's default, for fields that are read into our sections.
      fixed: Name -> the supported values, the class's default first.
      free: Names of fields with no effect, or only on speed and precision.
    """

    read: Mapping[str, Any]
    fixed: Mapping[str, tuple]
    free: Collection[str] = ()


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks every field of a config.json and fills in defaults.

    Args:
      config: config.json of a class of FIELDS.

    Returns:
      Dict of all fields that are read, and of "_class_name".

    Raises:
      ConversionError: If a field is not known, or has a value that is not supported.
    """
    name = config["_class_name"]
    fields = FIELDS[name]
    for field, value in config.items():
        known = field in fields.read or field in fields.fixed
        if known or field in fields.free or field.startswith("_"):
            continue
        raise ConversionError(
            f"{field}={value!r} of {name} is not supported: what it does is not known "
            "here; remove it from config.json if it changes nothing"
        )
    for field, allowed in fields.fixed.items():
        value = config.get(field, allowed[0])
        if value not in allowed:
            raise ConversionError(
                f"{field}={value!r} of {name} is not supported: only {allowed[0]!r} is"
            )
    given = {field: config[field] for field in fields.read if field in config}
    return {"_class_name": name} | dict(fields.read) | given


_UNET_FIXED = dict(
    act_fn=("silu", "swish"),
    center_input_sample=(False,),
    class_embed_type=(None,),
    downsample_padding=(1,),
    flip_sin_to_cos=(True,),
    freq_shift=(0,),
    mid_block_scale_factor=(1,),
    norm_eps=(1e-5,),
    time_embedding_type=("positional",),
)
# `EMAModel.save_pretrained` writes these fields beside those of the network.
_AVERAGE = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
_UNET_READ = dict(
    block_out_channels=None,
    down_block_types=None,
    up_block_types=None,
    sample_size=None,
    layers_per_block=2,
    dropout=0.0,
    norm_num_groups=32,
    attention_head_dim=8,
    resnet_time_scale_shift="default",
    num_class_embeds=None,
    time_embedding_dim=None,
)
_CROSS = "CrossAttnDownBlock2D"
_CROSS_UP = "CrossAttnUpBlock2D"

_FIRST_STAGE_READ = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(64,),
    layers_per_block=1,
    norm_num_groups=32,
    sample_size=32,
    # The default of both classes, whatever the latents were scaled by in training.
    scaling_factor=0.18215,
    mid_block_add_attention=True,
)

# Fields of all models of transformers: for training, loading and outputs, and for
# generating text.
_TRANSFORMERS = tuple(
    """
    architectures attention_dropout bos_token_id chunk_size_feed_forward dropout dtype
    eos_token_id finetuning_task gradient_checkpointing id2label initializer_factor
    initializer_range label2id model_type output_attentions output_hidden_states
    pad_token_id prefix problem_type projection_dim return_dict sep_token_id
    task_specific_params tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)
_TEXT_FIXED = dict(
    add_cross_attention=(False,),
    cross_attention_hidden_size=(None,),
    is_decoder=(False,),
    is_encoder_decoder=(False,),
    pruned_heads=({},),
)

FIELDS = MappingProxyType(
    {
        "CLIPTextModel": Fields(
            read=dict(
                vocab_size=49408,
                hidden_size=512,
                intermediate_size=2048,
                num_hidden_layers=12,
                num_attention_heads=8,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
            ),
            fixed=_TEXT_FIXED | dict(layer_norm_eps=(1e-5,)),
            free=_TRANSFORMERS,
        ),
        "LDMBertModel": Fields(
            read=dict(
                vocab_size=30522,
                d_model=1280,
                encoder_layers=32,
                encoder_ffn_dim=5120,
                encoder_attention_heads=8,
                head_dim=64,
                max_position_embeddings=77,
            ),
            fixed=_TEXT_FIXED
            | dict(activation_function=("gelu",), scale_embedding=(False,)),
            free=(
                "activation_dropout",
                "classifier_dropout",
                "encoder_layerdrop",
                "init_std",
                # The same as `encoder_layers`, under the usual name.
                "num_hidden_layers",
                *_TRANSFORMERS,
            ),
        ),
        "AutoencoderKL": Fields(
            read=_FIRST_STAGE_READ
            | dict(
                latent_channels=4,
                shift_factor=None,
                latents_mean=None,
                latents_std=None,
                use_post_quant_conv=True,
                use_quant_conv=True,
            ),
            fixed=dict(act_fn=("silu", "swish")),
            free=("force_upcast", *_AVERAGE),
        ),
        "VQModel": Fields(
            read=_FIRST_STAGE_READ
            | dict(latent_channels=3, num_vq_embeddings=256, vq_embed_dim=None),
            fixed=dict(
                act_fn=("silu", "swish"),
                lookup_from_codebook=(False,),
                norm_type=("group",),
            ),
            free=("force_upcast", *_AVERAGE),
        ),
        "UNet2DModel": Fields(
            read=_UNET_READ
            | dict(
                in_channels=3,
                out_channels=3,
                block_out_channels=(224, 448, 672, 896),
                down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
                up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
                attn_norm_num_groups=None,
            ),
            fixed=_UNET_FIXED
            | dict(
                add_attention=(True,),
                downsample_type=("conv",),
                mid_block_type=("UNetMidBlock2D",),
                upsample_type=("conv",),
            ),
            free=("num_train_timesteps", *_AVERAGE),
        ),
        "UNet2DConditionModel": Fields(
            read=_UNET_READ
            | dict(
                in_channels=4,
                out_channels=4,
                block_out_channels=(320, 640, 1280, 1280),
                down_block_types=(*(_CROSS,) * 3, "DownBlock2D"),
                up_block_types=("UpBlock2D", *(_CROSS_UP,) * 3),
                cross_attention_dim=1280,
                transformer_layers_per_block=1,
                reverse_transformer_layers_per_block=None,
                num_attention_heads=None,
                use_linear_projection=False,
            ),
            fixed=_UNET_FIXED
            | dict(
                addition_embed_type=(None,),
                attention_type=("default",),
                class_embeddings_concat=(False,),
                conv_in_kernel=(3,),
                conv_out_kernel=(3,),
                cross_attention_norm=(None,),
                dual_cross_attention=(False,),
                encoder_hid_dim=(None,),
                encoder_hid_dim_type=(None,),
                mid_block_only_cross_attention=(None, False),
                mid_block_type=("UNetMidBlock2DCrossAttn",),
                only_cross_attention=(False,),
                resnet_out_scale_factor=(1.0,),
                resnet_skip_time_act=(False,),
                time_cond_proj_dim=(None,),
                time_embedding_act_fn=(None,),
                timestep_post_act=(None,),
            ),
            free=(
                # For kinds of embeddings that `fixed` does not allow.
                "addition_embed_type_num_heads",
                "addition_time_embed_dim",
                "projection_class_embeddings_input_dim",
                "upcast_attention",
                *_AVERAGE,
            ),
        ),
    }
)
