"""What operations do with memory, by the names of their primitives."""

from ldm_jax.planning.flatten import CONTROL

# Read arrays in memory, and write such.
HEAVY = (
    "dot_general",
    "conv_general_dilated",
    "ragged_dot",
    "sort",
    "gather",
    "scatter",
    "scatter-add",
    "scatter_add",
    "custom_call",
    "dot_product_attention_fwd_wrapper",
    "dot_product_attention_bwd_wrapper",
    *CONTROL,
)
# Write arrays, of what may be computed as it is read.
REDUCTIONS = ("reduce", "argmax", "argmin", "cumsum", "cumprod", "cumlogsumexp")
# Give a part of the values.
PARTS = ("slice", "split")
# Give the same values in another order.
VIEWS = (
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "rev",
    "stop_gradient",
    "copy",
    "sharding_constraint",
    "optimization_barrier",
    "name",
)
