"""Draws the SVG on stdin as PNG on stdout, started by `infinity_jax.data.svg`; its argument is the width in pixels.

It imports nothing of this package, so that it starts in a few hundredths of a second.
"""

import resource
import sys
from xml.parsers import expat

import resvg_py

_CPU_SECONDS, _MEMORY = 10, 1 << 30
_SHOWN = ("image", "feImage", "use")


def _limit() -> None:
    """Lets the process open no file and no socket any more, and take a gigabyte and ten seconds."""
    for kind, most in (
        (resource.RLIMIT_NOFILE, 3),  # stdin, stdout and stderr are the three
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _check(svg: str) -> None:
    """Raises ValueError where something is shown that is not in the file: it would be missing without a word."""

    def element(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] not in _SHOWN:
            return
        for key, value in attributes.items():
            if key.rpartition(":")[2] == "href" and not value.strip().startswith(("#", "data:")):
                raise ValueError(
                    f"it shows {value.strip()[:80]!r}, and other files and addresses are not opened"
                )

    parser = expat.ParserCreate()
    parser.StartElementHandler = element
    parser.Parse(svg, True)


def main() -> None:
    """Draws the picture; exits with a word on stderr if it cannot be drawn."""
    try:
        svg = sys.stdin.buffer.read().decode(
            "utf-8-sig"
        )  # before the limit: Python reads the codec from a file
        _limit()
        _check(svg)
        # 96 is CSS's number: without one, lengths in points or millimetres are refused.
        png = resvg_py.svg_to_bytes(svg_string=svg, width=int(sys.argv[1]), dpi=96, skip_system_fonts=True)
    except (ValueError, expat.ExpatError, MemoryError) as error:
        sys.exit(f"{error or type(error).__name__}")
    sys.stdout.buffer.write(bytes(png))


if __name__ == "__main__":
    main()
