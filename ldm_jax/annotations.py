"""Array types with shapes, for signatures: `Float[Array, "batch h w c"]`.

`pytest --check_shapes` checks them whenever an annotated function is called, and that a
dimension name has one size in all arguments and results of a call. `Float` is of any
precision, `Int` is signed, `Integer` signed or unsigned. They need jaxtyping, which
comes with the extra `[test]`; without it they are plain array types.
"""

try:
    from jaxtyping import Bool, Float, Int, Integer, Key, Num, Shaped, UInt8
except ImportError:

    class _Bare:
        """Placeholder for an array type if jaxtyping is not installed."""

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
    # Imported lazily: the package `data` does not import JAX.
    if name == "Array":
        import jax
        import numpy as np

        return jax.Array | np.ndarray
    raise AttributeError(name)
