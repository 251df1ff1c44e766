"""NSARM's published transformation network and ours (docs/spec_nsarm.md section 3), in the published order."""

from infinity_jax.config import UpscalerConfig
from infinity_jax.tools.convert.links import Buffer, Link, conv, dense, linear, same

# Before the names of the network in a file that holds the transformer too.
PREFIX = "map_transformer."


def upscaler_links(config: UpscalerConfig) -> list[Link | Buffer]:
    """Lists every tensor of the published network of a config."""
    c, channels = config, config.bits
    links: list[Link | Buffer] = []
    for number, after in enumerate((*c.extractor, c.bits)):
        links += _conv_and_norm(c, "feature_extractor", f"{3 * number}", f"{number + 1}", channels, after)
        channels = after
    for i, width in enumerate(c.widths):
        place = f"feature_transforms.{i}"
        links += _conv_and_norm(c, place, "0", f"scale_{i}/1", c.bits, width // 2)
        links += _conv_and_norm(c, place, "3", f"scale_{i}/2", width // 2, width)
    for i, layers in enumerate(c.layers):
        links += [link for layer in range(layers) for link in _layer(c, i, layer)]
    for i, width in enumerate(c.widths):
        published, ours = f"output_projs.{i}", f"scale_{i}"
        links += dense(f"{PREFIX}{published}.0", f"{ours}/hidden", (width, width // 2))
        links += _norm(f"{published}.1", f"{ours}/norm_out", width // 2)
        links += dense(f"{PREFIX}{published}.3", f"{ours}/out", (width // 2, c.bits))
    return links


def _conv_and_norm(
    c: UpscalerConfig, published: str, place: str, ours: str, channels: int, after: int
) -> list[Link]:
    *path, number = ours.split("/")
    at = "".join(f"{part}/" for part in path)
    norm = f"{PREFIX}{published}.{int(place) + 1}"
    of_map, there = (c.side, c.side, after), (after, c.side, c.side)
    return [
        conv(f"{PREFIX}{published}.{place}.weight", f"{at}conv{number}/kernel", (3, 3, channels, after)),
        same(f"{PREFIX}{published}.{place}.bias", f"{at}conv{number}/bias", (after,)),
        Link(f"{norm}.weight", there, (f"{at}norm{number}/scale",), of_map, layout="map"),
        Link(f"{norm}.bias", there, (f"{at}norm{number}/bias",), of_map, layout="map"),
    ]


def _layer(c: UpscalerConfig, i: int, layer: int) -> list[Link]:
    width, heads = c.widths[i], c.heads[i]
    published, ours = f"transformers.{i}.layers.{layer}", f"scale_{i}/layers"
    joined = (3, heads, width // heads)
    return [
        linear(
            f"{PREFIX}{published}.self_attn.in_proj_weight",
            (f"{ours}/joined/kernel",),
            (width, *joined),
            layer=layer,
        ),
        same(f"{PREFIX}{published}.self_attn.in_proj_bias", f"{ours}/joined/bias", joined, layer=layer),
        *dense(f"{PREFIX}{published}.self_attn.out_proj", f"{ours}/out", (width, width), layer),
        *dense(f"{PREFIX}{published}.linear1", f"{ours}/fc1", (width, 4 * width), layer),
        *dense(f"{PREFIX}{published}.linear2", f"{ours}/fc2", (4 * width, width), layer),
        *_norm(f"{published}.norm1", f"{ours}/norm1", width, layer),
        *_norm(f"{published}.norm2", f"{ours}/norm2", width, layer),
    ]


def _norm(published: str, ours: str, width: int, layer: int | None = None) -> list[Link]:
    names = (("weight", "scale"), ("bias", "bias"))
    return [
        same(f"{PREFIX}{published}.{theirs}", f"{ours}/{own}", (width,), layer=layer) for theirs, own in names
    ]
