"""How operations use memory, by the names of their primitives."""

from ldm_jax.planning.flatten import CONTROL

# Operations that read arrays from memory and write arrays to it.
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
# Operations that write arrays, but whose input may be computed as it is read (fused).
REDUCTIONS = ("reduce", "argmax", "argmin", "cumsum", "cumprod", "cumlogsumexp")
# Operations that return a part of the values.
PARTS = ("slice", "split")
# Operations that return the same values in another order or shape.
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
