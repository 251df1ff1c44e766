"""Makes the files beside it: T5EncoderModel of transformers (PyTorch, CPU, float32) on random weights.

Run with torch 2.14 and transformers 5.23: python make.py. The weights are rounded to float16 first and stored so, hence
exact. Their size is such that each part of the model changes the features: scores of attention have deviation
about 1, distances matter as much as content, norm scales differ from 1.
"""

import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from safetensors.numpy import save_file
from transformers import T5Config, T5EncoderModel

FOLDER = Path(__file__).parent
CONFIG = {
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 64,
    "num_heads": 3,
    "num_layers": 3,
    "vocab_size": 100,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "model_type": "t5",
}
LENGTHS = (200, 40, 5, 1)  # the longest is beyond the largest distance that has its own bucket


def random_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # the same tensor as shared.weight
            continue
        values = random.standard_normal(tuple(tensor.shape))
        if "layer_norm" in name:
            values = 1 + 0.3 * values
        elif name.endswith(("q.weight", "k.weight")):
            values *= tensor.shape[1] ** -0.5 * CONFIG["d_kv"] ** -0.25
        elif "relative_attention_bias" not in name and name != "shared.weight":
            values *= 1.5 * tensor.shape[1] ** -0.5
        weights[name] = values.astype(np.float16)
    return weights


def main() -> None:
    model = T5EncoderModel(T5Config(**CONFIG)).eval()
    weights = random_weights(model)
    with torch.no_grad():
        state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
        result = model.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
        assert not result.missing_keys and not result.unexpected_keys
        ids = torch.from_numpy(np.random.default_rng(1).integers(2, 100, (len(LENGTHS), max(LENGTHS))))
        mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
        ids = ids * mask
        features = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    arrays = {
        "ids": ids.numpy().astype(np.int32),
        "mask": mask.numpy(),
        "features": features[mask].numpy(),  # of tokens that exist, text after text
    }
    save_file(weights, FOLDER / "model.safetensors")
    save_file(arrays, FOLDER / "outputs.safetensors")
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    main()
