"""The models of the releases: how their files name things."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from infinity_jax.config import VECTOR, VIT, TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import PRESETS, TOKENIZERS, UPSCALERS, VAR
from infinity_jax.tools.convert import upscaler_names
from infinity_jax.tools.convert.links import Buffer, HasShape, Link, differences
from infinity_jax.tools.convert.tokenizer_names import tokenizer_layout, tokenizer_links
from infinity_jax.tools.convert.transformer_names import CAPTION_TABLE, chunks_of, transformer_links

Shapes = Mapping[str, HasShape]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of published weights.

    Attributes:
      name: "transformer", "tokenizer" or "upscaler".
      config_class: of its config.
      models: the published ones by name.
      nesting_of: a config -> keys under which the release's own files keep the state dict, and what stands there before
        every name.
      links: (config, **layout) -> its tensors.
      layout_of: the layout of a state dict, from its names and shapes.
      usual_layout: the layout in which the release would write a model of a config.
      bits_of: bits a token, from a state dict's shapes; None if they do not tell.
      signature: beginnings of names that only this kind has.
      chosen: tells by their names which tensors of a file are of this kind; the others are another's.
    """

    name: str
    config_class: type
    models: Mapping[str, Any]
    nesting_of: Callable[[Any], tuple[tuple[str, ...], str]]
    links: Callable[..., list[Link | Buffer]]
    layout_of: Callable[[Shapes], dict[str, Any]]
    usual_layout: Callable[[Any], dict[str, Any]]
    bits_of: Callable[[Shapes], int | None]
    signature: tuple[str, ...]
    chosen: Callable[[str], bool] = lambda name: True

    def fitting_links(
        self, tensors: Shapes, config: Any, config_name: str
    ) -> tuple[list[Link | Buffer], dict[str, Any]]:
        """Makes the links of a config in the layout of a state dict, and gives that layout.

        Raises:
          UserError: the tensors are not exactly those of the config (`config_name` is for the message, which says
            what they probably are instead).
        """
        layout = self.layout_of(tensors)
        try:
            links = self.links(config, **layout)
            found = differences(tensors, links)
        except UserError as error:
            links, found = [], [str(error)]
        if not found:
            return links, layout
        if any("/" in name for name in tensors):
            found = ["these are weights of this project already"]
        elif others := [k.name for k in KINDS.values() if k is not self and k._signs(tensors)]:
            found = [f"this is a {others[0]}; use --kind {others[0]}"]
        else:
            found = [*self._what_it_is(tensors, config.bits), *found]
        raise UserError(f"the weights do not fit the {self.name} config {config_name!r}: {'. '.join(found)}")

    def _signs(self, tensors: Shapes) -> bool:
        return any(name.startswith(self.signature) for name in tensors)

    def _what_it_is(self, tensors: Shapes, bits: int) -> list[str]:
        sentences, found = [], self.bits_of(tensors)
        if found not in (None, bits):
            sentences.append(f"This is a {self.name} of d={found}, the config says d={bits}")
        layout = self.layout_of(tensors)
        for name, config in self.models.items():
            with contextlib.suppress(UserError):  # its blocks cannot be grouped like this
                if not differences(tensors, self.links(config, **layout)):
                    return [*sentences, f"These look like the weights of {name!r}"]
        return sentences


def _transformer_layout(tensors: Shapes) -> dict[str, Any]:
    table = tensors.get(CAPTION_TABLE)
    rows = table.shape[0] if table is not None and len(table.shape) == 2 else None
    return {"chunks": chunks_of(tensors), "caption_rows": rows}


def _usual_transformer_layout(config: TransformerConfig) -> dict[str, Any]:
    def size(c: TransformerConfig) -> tuple[int, ...]:
        return c.layers, c.width, c.heads, c.bits, c.text_channels, c.text_length

    published = [p.block_chunks for p in PRESETS.values() if size(p.transformer) == size(config)]
    return {"chunks": published[0] if published else 4 if config.layers % 4 == 0 else 0}


def _transformer_bits(tensors: Shapes) -> int | None:
    embedding = tensors.get("word_embed.weight")
    return embedding.shape[1] if embedding is not None and len(embedding.shape) == 2 else None


def _usual_tokenizer_layout(config: TokenizerConfig) -> dict[str, Any]:
    if config.architecture == VIT or config.quantizer != VECTOR:
        return {}
    return {"inner_names": False, "counted_scales": 10}


def _tokenizer_bits(tensors: Shapes) -> int | None:
    names = ("encoder.conv_out.conv.bias", "encoder.conv_out.bias", "quant_embed.bias")
    found = [tensors[n].shape for n in names if n in tensors]
    return found[0][0] if found and found[0] else None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "transformer": Kind(
            name="transformer",
            config_class=TransformerConfig,
            models={name: preset.transformer for name, preset in {**PRESETS, **VAR}.items()},
            nesting_of=lambda config: ((), ""),
            links=transformer_links,
            layout_of=_transformer_layout,
            usual_layout=_usual_transformer_layout,
            bits_of=_transformer_bits,
            signature=("block_chunks.", "blocks.", "pos_start"),
            chosen=lambda name: not name.startswith(upscaler_names.PREFIX),
        ),
        "tokenizer": Kind(
            name="tokenizer",
            config_class=TokenizerConfig,
            models=TOKENIZERS,
            nesting_of=lambda config: (
                (("state_dict",), "module.") if config.architecture == VIT else (("vae",), "")
            ),
            links=tokenizer_links,
            layout_of=tokenizer_layout,
            usual_layout=_usual_tokenizer_layout,
            bits_of=_tokenizer_bits,
            signature=("encoder.conv_in.", "decoder.conv_in.", "encoder.conv1.", "quant_embed."),
        ),
        "upscaler": Kind(
            name="upscaler",
            config_class=UpscalerConfig,
            models=UPSCALERS,
            nesting_of=lambda config: (("trainer", "gpt_fsdp"), ""),
            links=upscaler_names.upscaler_links,
            layout_of=lambda tensors: {},
            usual_layout=lambda config: {},
            bits_of=lambda tensors: None,
            signature=(upscaler_names.PREFIX,),
            chosen=lambda name: name.startswith(upscaler_names.PREFIX),
        ),
    }
)
