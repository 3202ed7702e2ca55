"""The checker of annotations under `pytest --check_shapes`."""

import typing

from beartype import BeartypeConf, beartype
from flax.linen import linear

# Layers have a field of this type, which no checker can ask for as it is.
typing.runtime_checkable(linear.PromoteDtypeFn)

# An int will do for a float (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
