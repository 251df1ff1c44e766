"""What a sampler can be asked for, and what does not go together."""

import dataclasses

import numpy as np
import pytest

from infinity_jax.config import SampleConfig, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling import guidance
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2), (4, 4)), (4, 4))
MODEL = TransformerConfig(layers=2, width=64, heads=4, bits=6, text_channels=128, text_length=8)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unguided_scales": (4,)}, "no scale 4"),
        ({"reuse_guidance": True}, "unguided_scales"),
        ({"reuse_guidance": True, "unguided_scales": (0, 1)}, "scale 0"),
        ({"reuse_guidance": True, "unguided_scales": (1,), "mixed": "none"}, "logits"),
    ],
)
def test_wrong_guidance_of_scales_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_settings_of_each_scale():
    np.testing.assert_array_equal(guidance.per_scale(2.0, 3, "tau"), [2, 2, 2])
    np.testing.assert_array_equal(guidance.strengths("pyramid", 3.0, 5), [1, 1.5, 2, 2.5, 3])
    np.testing.assert_array_equal(guidance.strengths("none", 3.0, 2), [1, 1])
    np.testing.assert_array_equal(guidance.strengths("logits", [1.0, 2.0], 2), [1, 2])
    with pytest.raises(UserError, match="3 scales"):
        guidance.per_scale([1.0, 2.0], 3, "tau")
    with pytest.raises(UserError, match="finite"):
        guidance.per_scale(float("nan"), 3, "cfg")
    with pytest.raises(UserError, match="feature_layers"):
        SamplerConfig(MODEL, TOKENIZER, SCHEDULE, "features", (2,))
    with pytest.raises(UserError, match="logits"):
        SamplerConfig(MODEL, TOKENIZER, SCHEDULE, "pixels")
    chosen = SamplerConfig.from_settings(MODEL, TOKENIZER, SCHEDULE, SampleConfig(guidance="both"))
    assert chosen == SamplerConfig(MODEL, TOKENIZER, SCHEDULE, "both", (-2,))
