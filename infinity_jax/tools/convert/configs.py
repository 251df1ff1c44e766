"""What `--config` names: a published model, a config file of training, or a JSON file of sections."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinity_jax import config_files, scales
from infinity_jax.config import VIT, SampleConfig, TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import reading
from infinity_jax.presets import PRESETS, TOKENIZERS, UPSCALERS, VAR, Preset

_CLASSES = {"transformer": TransformerConfig, "tokenizer": TokenizerConfig, "upscaler": UpscalerConfig}
_MORE = {"transformer": ("scales", "text", "sample", "source"), "tokenizer": ("scales",), "upscaler": ()}


@dataclasses.dataclass(frozen=True)
class ResolvedConfig:
    """A model and what a checkpoint's config.json will say about it.

    Attributes:
      model: the config of the kind that was asked for.
      sections: of config.json: the model's own section, but for an upscaler "scales", and for a transformer "text" and
        "sample".
    """

    model: TransformerConfig | TokenizerConfig | UpscalerConfig
    sections: Mapping[str, Any]


def resolve_config(name_or_file: str, kind: str) -> ResolvedConfig:
    """Finds the config that `--config` names.

    Args:
      name_or_file: a name of `PRESETS` (for a tokenizer: the one that belongs to it, or a name of `TOKENIZERS`);
        a Python config file or the name of a packed one, of which "model", "data.scales", "text" and "sample" are read,
        with ":argument" after it or not; or a .json file with the sections of a checkpoint's config.json:
        {"transformer": {...}} or {"tokenizer": {...}}, and "scales", "text" and "sample" if they differ from the usual
        ones.
      kind: "transformer", "tokenizer" or "upscaler".
    Raises:
      UserError: no such name or file, or it is of another kind.
    """
    given = _sections(name_or_file, kind)
    model = from_dict(_CLASSES[kind], given[kind], kind)
    if isinstance(model, UpscalerConfig):  # which is of a system that has the rest
        return ResolvedConfig(model, {kind: dataclasses.asdict(model)})
    usual: dict[str, Any] = {"scales": "1M"}
    if isinstance(model, TransformerConfig):
        usual = Preset(model).sections()
    elif model.architecture == VIT:  # which knows one scale of one size
        usual = {"scales": str(model.side // model.transformer_stride)}
    sections = usual | {key: given[key] for key in _MORE[kind] if key in given}
    scales.make_schedule(sections["scales"])  # raises if there is no such budget
    if kind == "transformer":
        from_dict(SampleConfig, sections["sample"], "sample")
        if missing := {"encoder", "max_length"} - sections["text"].keys():
            raise UserError(f"{name_or_file}: the section text lacks {', '.join(sorted(missing))}")
    return ResolvedConfig(model, sections | {kind: dataclasses.asdict(model)})


def _sections(name_or_file: str, kind: str) -> dict[str, Any]:
    """Reads the sections that a name or a file gives, the model's own under `kind`."""
    file, preset = Path(name_or_file.split(":", 1)[0]), {**PRESETS, **VAR}.get(name_or_file)
    if file.suffix == ".json":
        return _sections_of_json(file, kind)
    if file.suffix == ".py":
        return _sections_of_python(name_or_file, kind)
    if preset and kind == "transformer":
        return preset.sections() | {kind: dataclasses.asdict(preset.transformer)}
    if kind == "upscaler" and name_or_file in UPSCALERS:
        return {kind: dataclasses.asdict(UPSCALERS[name_or_file])}
    if preset and kind == "tokenizer":
        return {kind: dataclasses.asdict(TOKENIZERS[preset.tokenizer]), "scales": preset.scales}
    if kind == "tokenizer" and name_or_file in TOKENIZERS:
        return {kind: dataclasses.asdict(TOKENIZERS[name_or_file])}
    if config_files.exists(name_or_file):
        return _sections_of_python(name_or_file, kind)
    known = [*PRESETS, *VAR, *(TOKENIZERS if kind == "tokenizer" else ())]
    known = list(UPSCALERS) if kind == "upscaler" else known
    raise UserError(
        f"unknown {kind} config {name_or_file!r}; known: {', '.join(known)}, a .py config file or the name of one that "
        "is packed, or a .json file"
    )


def _sections_of_json(file: Path, kind: str) -> dict[str, Any]:
    try:
        values = reading.read_json(file)
    except FileNotFoundError:
        raise UserError(f"no config file {file}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not readable JSON ({error})") from error
    section = values.get(kind) if isinstance(values, dict) else None
    if not isinstance(section, dict):
        held = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise UserError(f'{file} has no section {kind!r} (it has: {held}); write {{"{kind}": {{...}}}}')
    return values


def _sections_of_python(path: str, kind: str) -> dict[str, Any]:
    values = config_files.load(path).to_dict()
    if "model" not in values:
        raise UserError(f"{path} has no section config.model (it has: {', '.join(values)})")
    given = {key: values[key] for key in ("text", "sample") if key in values}
    if "text" in given:  # The folder that is written keeps its text encoder inside.
        given["text"] = {key: value for key, value in given["text"].items() if key != "path"}
    # Not data.source: what a run of training would read is not what these weights were made from.
    data = values.get("data", {})
    return given | {key: data[key] for key in ("scales",) if key in data} | {kind: values["model"]}
