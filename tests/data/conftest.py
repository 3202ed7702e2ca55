"""A tiny prepared `shapes`, made once, in both formats."""

import pytest

from tests.data import common


@pytest.fixture(scope="session")
def array_record_dir(tmp_path_factory):
    return common.prepare_shapes(tmp_path_factory.mktemp("array_record"))


@pytest.fixture(scope="session")
def tfrecord_dir(tmp_path_factory, array_record_dir):
    return common.as_tfrecord(array_record_dir, tmp_path_factory.mktemp("tfrecord"))
