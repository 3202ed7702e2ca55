"""The checker of annotations under `pytest --check_shapes`."""

from beartype import BeartypeConf, beartype

# An int will do for a float (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
