"""The checker of `make shapes`: beartype, to which whole numbers are floats, as to every type checker."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
