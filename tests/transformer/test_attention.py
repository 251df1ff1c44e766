"""Attention in all its forms: the same numbers, and the form that fits the device."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import PROGRAMS

from infinity_jax.scales import ScaleSchedule, make_schedule
from infinity_jax.transformer import attention
from infinity_jax.transformer.attention import attend, block_causal_attention, block_causal_mask
from infinity_jax.transformer.kernels import attention_cudnn, attention_xla
from infinity_jax.transformer.kernels.attention_splash import attend_splash

SCHEDULE = make_schedule("64px")
RUNS = tuple(zip(SCHEDULE.tokens, SCHEDULE.offsets[1:], strict=True))


def arrays(queries: int, keys: int, head: int = 12, batch: int = 2) -> list[jax.Array]:
    """q, k, v."""
    random = np.random.default_rng(0)
    shapes = [(batch, 3, n, head) for n in (queries, keys, keys)]
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def text_mask(keys: int) -> jax.Array:
    """Some tokens of the first picture's text exist, all of the second's."""
    return jnp.stack([jnp.arange(keys) % 3 > 0, jnp.ones(keys, bool)])


def dense(mask):
    """The function of q, k, v in its plainest form."""

    def attention_of_all(q, k, v):
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision="highest")
        weights = jax.nn.softmax(jnp.where(mask, scores, attention_xla.MASKED))
        return jnp.einsum("bhqk,bhkd->bhqd", weights, v, precision="highest")

    return attention_of_all


def with_gradients(form, given) -> list[jax.Array]:
    """The result, and gradients of a function of it."""

    def both(*qkv):
        out, back = jax.vjp(form, *qkv)
        return out, *back(jnp.sin(out.astype(jnp.float32)).astype(out.dtype))

    return list(jax.jit(both)(*given))


def assert_same(ours, reference, forward: float, backward: float):
    for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
        error = jnp.linalg.norm((a - b).astype(jnp.float32)) / jnp.linalg.norm(b)
        assert error < (backward if i else forward), (i, float(error))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [7, 50])
def test_a_head_at_a_time_in_parts_is_all_at_once(queries, dtype, monkeypatch):
    given = arrays(queries, 30)
    everything, text = jnp.ones((1, 1, 1, 30), bool), text_mask(30)[:, None, None]
    of_each = jnp.asarray(np.random.default_rng(1).random((2, 1, queries, 30)) < 0.5)
    for mask in (None, text, of_each):
        form = lambda q, k, v, mask=mask: attend(q, k, v, dtype, mask)  # noqa: E731
        reference = with_gradients(dense(everything if mask is None else mask), given)
        at_once = with_gradients(form, given)
        with monkeypatch.context() as patched:
            patched.setattr(attention_xla, "MANY_SCORES", 0)
            patched.setattr(attention_xla, "SCORES_AT_ONCE", 11 * 30)
            in_parts = with_gradients(form, given)
        tolerances = (5e-7, 2e-6) if dtype == "float32" else (1e-2, 2e-2)
        for ours in (at_once, in_parts):
            assert all(x.dtype == jnp.float32 for x in ours)
            assert_same(ours, reference, *tolerances)


@pytest.mark.parametrize("sizes", [((1, 1), (2, 2), (3, 3), (10, 12)), ((5, 7),)])
def test_all_scales_of_any_schedule(sizes, monkeypatch):
    schedule = ScaleSchedule(sizes, sizes[-1])
    monkeypatch.setattr(attention_xla, "SCORES_AT_ONCE", 3000)
    monkeypatch.setattr(attention_xla, "MANY_SCORES", 0)
    given = arrays(schedule.length, schedule.length)
    ours = with_gradients(lambda q, k, v: block_causal_attention(q, k, v, schedule, "float32"), given)
    assert_same(ours, with_gradients(dense(block_causal_mask(schedule)), given), 5e-7, 2e-6)


def test_splash_is_the_masked_form():
    """In the interpreter, which multiplies float32 exactly; 130 tokens are rounded up to 256, heads of 12 to 128."""
    given = arrays(SCHEDULE.length, SCHEDULE.length)
    ours = with_gradients(lambda q, k, v: attend_splash(q, k, v, "float32", RUNS), given)
    assert_same(ours, with_gradients(dense(block_causal_mask(SCHEDULE)), given), 5e-7, 2e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_splash_of_one_scale_and_of_a_text(masked):
    given, mask_BK = arrays(50, 20), text_mask(20) if masked else jnp.ones((2, 20), bool)
    ours = with_gradients(
        lambda q, k, v: attend_splash(q, k, v, "float32", mask_BK=mask_BK if masked else None), given
    )
    assert_same(ours, with_gradients(dense(mask_BK[:, None, None]), given), 5e-7, 2e-6)


def of_kernels(monkeypatch, platform: str):
    """As on a device: splash in the interpreter, and jax's own implementation for that of cuDNN."""
    monkeypatch.setattr(attention, "platform", lambda: platform)
    monkeypatch.setattr(attention, "MANY_SCORES", {"tpu": 1, "gpu": 1})
    monkeypatch.setattr(attention_cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(attention_cudnn, "compute_capability", lambda: "9.0")


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_kernels_with_rounded_operands(platform, monkeypatch):
    of_kernels(monkeypatch, platform)
    given = arrays(SCHEDULE.length, SCHEDULE.length, 8)
    ours = with_gradients(lambda q, k, v: block_causal_attention(q, k, v, SCHEDULE, "bfloat16"), given)
    assert all(x.dtype == jnp.float32 for x in ours)
    assert_same(ours, with_gradients(dense(block_causal_mask(SCHEDULE)), given), 1e-2, 2e-2)
    given, mask = arrays(51, 21, 8), text_mask(21)[:, None, None]
    ours = with_gradients(lambda q, k, v: attend(q, k, v, "bfloat16", mask), given)
    assert_same(ours, with_gradients(dense(mask), given), 1e-2, 2e-2)


def test_cudnn_is_told_how_many_tokens_a_text_has(monkeypatch):
    """And gets no array of as many numbers as there are scores, as it does for other masks."""
    of_kernels(monkeypatch, "gpu")
    given, mask_BK = arrays(50, 21, 8), jnp.arange(21) < jnp.array([[21], [4]])
    handed = []

    def attention_of_jax(*qkv, mask, key_value_seq_lengths, implementation, **named):
        handed.append((mask, key_value_seq_lengths))
        return implemented(
            *qkv, mask=mask, key_value_seq_lengths=key_value_seq_lengths, implementation="xla", **named
        )

    implemented = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention_of_jax)
    mask = mask_BK[:, None, None]
    ours = with_gradients(lambda q, k, v: attend(q, k, v, "bfloat16", mask, first=True), given)
    assert_same(ours, with_gradients(dense(mask), given), 1e-2, 2e-2)
    assert all(mask is None for mask, _ in handed) and handed[0][1].shape == (2,)
    handed.clear()
    some = mask_BK.at[:, 1].set(False)[:, None, None]
    ours = with_gradients(lambda q, k, v: attend(q, k, v, "bfloat16", some), given)
    assert_same(ours, with_gradients(dense(some), given), 1e-2, 2e-2)
    assert handed[0][0].shape == (2, 1, 50, 22) and handed[0][1] is None


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_a_query_that_sees_nothing_gets_the_mean(platform, monkeypatch):
    of_kernels(monkeypatch, platform)
    q, k, v = (x.astype("bfloat16").astype("float32") for x in arrays(5, 21, 8))
    mask = text_mask(21).at[1].set(False)[:, None, None]
    out, dq, dk, dv = with_gradients(lambda q, k, v: attend(q, k, v, "bfloat16", mask), [q, k, v])
    mean = jnp.broadcast_to(v[1].mean(1, keepdims=True), out[1].shape)
    np.testing.assert_allclose(out[1], mean, atol=5e-3)
    assert not dq[1].any() and not dk[1].any() and dv[1].any()
    assert dq[0].any() and dk[0].any()


@pytest.mark.parametrize(
    ("platform", "head", "dtype", "tokens", "chosen"),
    [
        ("cpu", 96, "bfloat16", 2521, "xla"),
        ("tpu", 96, "bfloat16", 2521, "splash"),
        ("tpu", 104, "bfloat16", 2521, "splash"),
        ("tpu", 96, "float32", 2521, "xla"),
        ("tpu", 96, "bfloat16", 521, "xla"),  # 640 with the kernel's padding
        ("gpu", 96, "bfloat16", 2521, "cudnn"),
        ("gpu", 128, "bfloat16", 2521, "cudnn"),
        ("gpu", 100, "bfloat16", 2521, "xla"),  # not a multiple of 8
        ("gpu", 136, "bfloat16", 2521, "xla"),
        ("gpu", 96, "float32", 2521, "xla"),
        ("gpu", 96, "bfloat16", 121, "xla"),
    ],
)
def test_which_form_is_used_where(platform, head, dtype, tokens, chosen, monkeypatch):
    used = []

    def note(name):
        return lambda q, *others, **named: used.append(name) or q.astype(jnp.float32)

    monkeypatch.setattr(attention, "platform", lambda: platform)
    monkeypatch.setattr(attention_cudnn, "compute_capability", lambda: "8.0")
    for name in ("xla", "splash", "cudnn"):
        monkeypatch.setattr(attention, f"attend_{name}", note(name))
    q = k = jax.ShapeDtypeStruct((1, 2, tokens, head), jnp.float32)
    jax.eval_shape(lambda q, k: attend(q, k, k, dtype), q, k)
    jax.eval_shape(lambda q, k: attend(q, k, k, dtype, jnp.ones((1, 1, 1, tokens), bool)), q, k)
    assert used == [chosen] * 2
    used.clear()
    jax.eval_shape(lambda q, k: attend(q, k, k, dtype, jnp.ones((1, 1, tokens, tokens), bool)), q, k)
    assert used == ["xla"]  # a mask of pairs


@pytest.mark.parametrize(
    ("capability", "possible"),
    [
        ("9.0", True),
        ("8.0", True),
        ("12.0", True),
        ("7.5", False),
        ("gfx942", False),
        ("gfx90a", False),
        ("", False),
    ],
)
def test_cudnn_is_for_gpus_of_nvidia_since_ampere(capability, possible, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert attention_cudnn.possible(96) == possible
    assert not attention_cudnn.possible(100)


def test_cudnn_is_not_for_a_device_that_has_no_compute_capability():
    assert not attention_cudnn.possible(96)  # of this machine's CPU


def test_all_scales_use_one_kernel_on_a_tpu_and_several_on_a_gpu(monkeypatch):
    schedule, used = make_schedule("0.25M"), []
    monkeypatch.setattr(attention_cudnn, "compute_capability", lambda: "9.0")
    shape = jax.ShapeDtypeStruct((1, 2, schedule.length, 96), jnp.float32)
    for name in ("xla", "splash", "cudnn"):
        note = lambda q, *_, name=name, **named: used.append((name, q.shape[2])) or q  # noqa: E731
        monkeypatch.setattr(attention, f"attend_{name}", note)
    expected = {
        "tpu": [("splash", 2521)],
        "gpu": [("xla", 121), ("xla", 144), *(("cudnn", n) for n in (256, 400, 576, 1024))],
    }
    for platform, forms in expected.items():
        monkeypatch.setattr(attention, "platform", lambda platform=platform: platform)
        jax.eval_shape(lambda q: block_causal_attention(q, q, q, schedule, "bfloat16"), shape)
        assert used == forms
        used.clear()


def test_backward_pass_keeps_no_weights(monkeypatch):
    """What is saved for it grows with the tokens, not with their pairs."""
    monkeypatch.setattr(attention_xla, "MANY_SCORES", 0)
    given = arrays(64, 512)
    saved = jax.eval_shape(lambda *qkv: jax.vjp(lambda q, k, v: attend(q, k, v, "float32"), *qkv)[1], *given)
    assert max(leaf.size for leaf in jax.tree.leaves(saved)) == given[1].size


@pytest.mark.long
def test_splash_on_meshes():
    script = PROGRAMS / "attention_on_mesh.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_splash_compiles_for_tpu(topology):
    script = PROGRAMS / "attention_on_tpu.py"
    done = subprocess.run([sys.executable, str(script), topology], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *steps, sampler = (json.loads(line) for line in done.stdout.splitlines())
    assert len(steps) == 3
    for step in steps:
        for kernel in ("fwd_residuals", "dkv_no_residuals"):
            assert f"splash_mha_{kernel}" in step["kernels"], step  # among picture tokens
            assert f"splash_mha_{kernel.replace('_', '_segmented_', 1)}" in step["kernels"], (
                step
            )  # to the text
        # Attention is most of so narrow a model. Its kernels have 7 products where the model needs 6, and round
        # scales up to whole blocks of tokens.
        passes = 4 / 3 if "'block'" in step["name"] else 1  # forward once more
        assert 1.1 < step["ratio"] < 1.4 * passes, step
    assert sampler["kernels"] == ["splash_mha_fwd_no_residuals"], sampler
    assert 0.9 < sampler["ratio"] <= 1.1, sampler
