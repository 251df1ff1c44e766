"""The numbers that one looks at first, as text for the screen."""

from collections.abc import Mapping
from typing import Any

# Key of the JSON file -> what it is, and how it is written.
CHECKPOINT = {
    "validation_loss": ("validation loss", "{:.4f}"),
    "bit_accuracy": ("bit accuracy", "{:.1%}"),
    "psnr": ("reconstruction, PSNR", "{:.2f} dB"),
    "reconstruction_kid": ("EffNet-KID, reconstructed", "{:.4f}"),
    "kid": ("EffNet-KID, generated", "{:.4f}"),
    "real_kid": ("EffNet-KID, real", "{:.4f}"),
    "retrieval_top1": ("retrieval, top 1", "{:.1%}"),
    "retrieval_top5": ("retrieval, top 5", "{:.1%}"),
    "retrieval_compositions_top1": ("compositions, top 1", "{:.1%}"),
    "retrieval_compositions_top5": ("compositions, top 5", "{:.1%}"),
}
TOKENIZER = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.4f}"),
    "lpips": ("LPIPS", "{:.4f}"),
    "kid": ("EffNet-KID", "{:.4f}"),
    "fid": ("FID", "{:.3f}"),
}


def as_text(numbers: Mapping[str, Any], kind: Mapping[str, tuple[str, str]]) -> str:
    """Writes a line for each number of a kind that was measured."""
    lines = [
        (what, form.format(numbers[key]))
        for key, (what, form) in kind.items()
        if numbers.get(key) is not None
    ]
    width = max((len(what) for what, _ in lines), default=0)
    return "\n".join(f"{what:<{width}}  {text}" for what, text in lines)
