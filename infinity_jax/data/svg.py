"""SVG files as PNG bytes: drawn by resvg in a process of its own, and kept.

An SVG is a program: it may name other files, and a few hundred bytes may ask for terabytes or for ever. So the process
that draws it can open nothing, and has a limit of time and of memory, see `svg_process.py`.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import resvg_py
from absl import logging

from infinity_jax.errors import UserError
from infinity_jax.files import atomic, pictures

SUFFIX = ".svg"
WIDTH = 512  # of the PNG in pixels; its height follows
SECONDS = 20  # longer than the process's own limit of CPU time
MOST_BYTES = 8 << 20
_PROCESS = Path(__file__).with_name("svg_process.py")


def read_picture(file: Path, data_dir: Path) -> bytes:
    """Reads the bytes of a picture; of an SVG those of its PNG, which is kept under `data_dir`.

    Raises:
      OSError: it cannot be read.
      BrokenPicture: an SVG that cannot be drawn.
    """
    content = pictures.read(file)
    if file.suffix.lower() != SUFFIX:
        return content
    name = hashlib.sha256(f"{resvg_py.__version__} {WIDTH} ".encode() + content).hexdigest()[:32]
    kept = data_dir / "svg" / f"{name}.png"
    try:
        return kept.read_bytes()
    except OSError:
        png = draw(content)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(kept, png)
    except OSError as error:
        logging.warning(
            "cannot keep the PNG of %s in %s (%s): it is drawn again each time", file, kept, error
        )
    return png


def draw(svg: bytes) -> bytes:
    """Draws an SVG as PNG bytes, `WIDTH` pixels wide, transparent where it draws nothing. Text has no fonts.

    Raises:
      BrokenPicture: it is none, names other files or addresses, or needs more time or memory than it may have.
    """
    if len(svg) > MOST_BYTES:
        raise _broken(svg, f"an SVG may have {MOST_BYTES >> 20} MB")
    # Its packages are those of this process, wherever they lie.
    packages = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", str(_PROCESS), str(WIDTH)]
    try:
        done = subprocess.run(
            command, input=svg, capture_output=True, timeout=SECONDS, env={**os.environ, **packages}
        )
    except subprocess.TimeoutExpired as error:
        raise _broken(svg, f"it is not drawn within {SECONDS} s") from error
    if done.returncode < 0:
        raise _broken(svg, "it needs more time or memory than a picture may have")
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _broken(svg, reason[-1][:200] if reason else "it cannot be drawn")
    return done.stdout


def _broken(svg: bytes, reason: str) -> pictures.BrokenPicture:
    return pictures.BrokenPicture(len(svg), UserError(reason))
