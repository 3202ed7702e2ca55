"""Flags of evaluations: none is passed over in silence."""

import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.flag_groups import check_used


def test_files_of_weights_that_nothing_uses():
    check_used(["fid", "frechet"], {"inception": "a.pth"})
    check_used(["pytorch_fid"], {"inception": "a.pth"})
    check_used(["cmmd", "fid"], {"clip": "a", "inception": "b"})
    message = "--feature_weights=dinov2=a: --distances=fid uses inception, nothing"
    with pytest.raises(ConfigError, match=message):
        check_used(["fid"], {"inception": "b", "dinov2": "a"})
    with pytest.raises(ConfigError, match="inception_pytorch_fid=a: .* leave it out"):
        check_used(["fid"], {"inception_pytorch_fid": "a"})
    with pytest.raises(ConfigError, match="is not given, nothing .* with inception"):
        check_used([], {"inception": "a"})
