"""Types of arrays with their shapes, for signatures: `Float[Array, "batch h w c"]`.

`pytest --check_shapes` checks them whenever an annotated function is called, and that a
name stands for one size in all arguments and results of a call. `Float` is of any
precision, `Int` is signed, `Integer` of either sign. They need jaxtyping, which comes
with the extra `[test]`; without it they are the bare types of arrays.
"""

try:
    from jaxtyping import Bool, Float, Int, Integer, Key, Num, Shaped, UInt8
except ImportError:

    class _Bare:
        """Stands for a kind of array where jaxtyping is not installed."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Integer = Key = Num = Shaped = UInt8 = _Bare

__all__ = [
    "Array",  # noqa: F822
    "Bool",
    "Float",
    "Int",
    "Integer",
    "Key",
    "Num",
    "Shaped",
    "UInt8",
]


def __getattr__(name):
    # Not before it is asked for: the room `data` does not import JAX.
    if name == "Array":
        import jax
        import numpy as np

        return jax.Array | np.ndarray
    raise AttributeError(name)
