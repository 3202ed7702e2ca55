"""How others name the weights of CLIP's image tower, as data.

Rows as in `convert.text_rows`, for transformers' CLIPVisionModelWithProjection, which
has the tower under "vision_model." and the projection beside it; so has CLIPModel.
"""

from ldm_jax.convert.state_dict import (
    CONV,
    DENSE,
    SAME,
    UNUSED,
    Row,
    layer_rows,
    norm_rows,
    prefixed,
)
from ldm_jax.convert.text_rows import clip_layer_rows


def clip_image_rows(encoder):
    """Maps transformers' CLIPVisionModelWithProjection.

    Args:
      encoder: ImageEncoder module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("embeddings.class_embedding", ("whole",), SAME),
        Row("embeddings.position_embedding.weight", ("positions",), SAME),
        Row("embeddings.position_ids", (), UNUSED),
    ]
    rows += layer_rows("embeddings.patch_embedding", "patches", CONV, bias=False)
    # Their spelling.
    rows += norm_rows("pre_layrnorm", "norm_in")
    for i in range(encoder.num_layers):
        rows += clip_layer_rows(f"encoder.layers.{i}", f"block_{i}")
    rows += norm_rows("post_layernorm", "norm_out")
    projection = layer_rows("visual_projection", "projection", DENSE, bias=False)
    return prefixed(rows, "vision_model.", "") + projection
