"""Reading MiniLM's weights from the int8 ONNX file: names and layout of our `MiniLM` parameters."""

import numpy as np
import onnx
from flax.traverse_util import unflatten_dict
from onnx import numpy_helper

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
    """The parameters of `MiniLM` as a nested dict of float32 arrays, from an ONNX file's bytes.

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
    """'inner.encoder.layer.3.output.dense.bias' -> ('layer_3', 'ffn_out')."""
    module = name.removeprefix(_PREFIX).rpartition(".")[0]
    if not module.startswith("encoder.layer."):
        return (_MODULES[module],)
    layer, _, rest = module.removeprefix("encoder.layer.").partition(".")
    return f"layer_{layer}", _MODULES[rest]
