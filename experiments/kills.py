"""Kills commands at random moments, starts each again, and looks for what is lost.

    python experiments/kills.py [--kills 50] [--seed 0] [--only train,sample] [--keep FOLDER]

Eight commands work on small pictures and models: prepare, train-tokenizer, train, sweep, sample, convert, export and
evaluate-tokenizer. Each runs twice undisturbed: what those two write alike is what is compared later, byte for byte;
of checkpoints the exported weights. Then commands, drawn at random with the rest, get SIGTERM, SIGINT or SIGKILL at a
moment drawn from the whole of their time, the start of the interpreter included. Afterwards the same command must end
with code 0 and the undisturbed result. A command that gets SIGTERM or SIGINT must end within `GRACE` seconds with its
documented code. Prints a table, and exits 1 if anything was lost. About 25 minutes for 50 kills on 2 idle cores.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.pictures import caption, jpeg  # pyright: ignore[reportMissingImports]

GRACE = 10.0  # seconds: 5 of the command's own, and a busy machine
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# What the shell sees: the command's own code, or that the system ended it, before it had anything to let go of.
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
# Names that differ from run to run, for times and random names in them; what is in checkpoints is compared as weights.
NOT_COMPARED = ("checkpoints", "tensorboard")
MODEL = "--config.model.layers=2 --config.model.width=64 --config.model.heads=2"
RUN = "--config.train.log_every=1 --config.train.checkpoint_every=2 --config.train.batch_size=4"
OFF = "--config.train.sample_every=0 --config.train.evaluate_every=0"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command; {out} is where it writes, {data} what it reads, {train} an undisturbed training.

    Attributes:
      trains: it may end with code 0 after SIGTERM, once it has saved.
      weights: workdirs in `out` whose weights are compared.
    """

    words: str
    trains: bool = False
    weights: tuple[str, ...] = ()


JOBS = {
    "prepare": Job("prepare --source jsonl:{data}/splits --workers 2 --out {out}"),
    "train-tokenizer": Job(
        "train-tokenizer --config emoji_tokenizer:debug --config.data.source=folder:{data}/folder "
        f"--config.train.steps=6 {RUN} {OFF} --workdir {{out}}",
        True,
        ("",),
    ),
    "train": Job(
        "train --config emoji:debug --config.data.source=folder:{data}/folder "
        f"--config.train.steps=12 {RUN} {OFF} {MODEL} --workdir {{out}}",
        True,
        ("",),
    ),
    "sweep": Job("sweep --config {data}/sweep.py --workdir {out}", True),
    "sample": Job("sample cat dog tree --seed 1 --batch 1 --out {out}"),
    "convert": Job("convert --from {data}/bundled --kind transformer --to-torch {out}/weights.pth"),
    "export": Job("export --checkpoint {train} --out {out}/model --dtype float32"),
    "evaluate-tokenizer": Job(
        "evaluate-tokenizer --data folder:{data}/folder --pictures 16 --json {out}/numbers.json --sheet {out}/sheet.png"
    ),
}
SWEEP = """
from ml_collections import ConfigDict
def get_config(argument=""):
    config = ConfigDict(sort_keys=False)
    config.base = "emoji:debug"
    config.changes = "data.source=folder:{data}/folder optim.ema_decay=0.0 train.log_every=1 train.checkpoint_every=2"
    length = ("3: train.steps=3", "5: train.steps=5")
    config.axes = ConfigDict(dict(length=length, seed=("0: train.seed=0",)), sort_keys=False)
    config.pictures = 0
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    return config
"""


class Place:
    """A folder with what the commands read, and one for each run of a command."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "data"
        for folder, count in (("folder", 24), ("splits", 600)):
            (self.data / folder / "images").mkdir(parents=True)
            rows = []
            for number in range(count):
                (self.data / folder / "images" / f"{number}.jpg").write_bytes(jpeg(number, 64))
                rows.append(
                    json.dumps({"image_path": f"images/{number}.jpg", "long_caption": caption(number)})
                )
            if folder == "folder":
                rows = [row.replace("long_caption", "caption") for row in rows]
            name = "captions.jsonl" if folder == "folder" else f"1.000_{count:09d}.jsonl"
            (self.data / folder / name).write_text("\n".join(rows) + "\n")
        shutil.copytree(ROOT / "infinity_jax/checkpoints/emoji", self.data / "bundled")
        (self.data / "sweep.py").write_text(SWEEP.replace("{data}", str(self.data)))

    def start(self, name: str, out: str) -> subprocess.Popen:
        folder = self.root / out
        folder.mkdir(exist_ok=True)
        # The same name for every run: it stands in some files.
        shown = self.root / "out"
        with contextlib.suppress(FileNotFoundError):
            shown.unlink()
        shown.symlink_to(folder)
        words = JOBS[name].words.format(out=shown, data=self.data, train=self.root / "train.0")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "INFINITY_DATA": str(self.root / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "infinity_jax.cli", *words.split()],
            env=environment,
            cwd=self.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self, name: str, out: str) -> float:
        """Runs a command to its end; its seconds."""
        begin = time.monotonic()
        process = self.start(name, out)
        _, words = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name} in {self.root / out} ended with {process.returncode}:\n{words}")
        return time.monotonic() - begin

    def result(self, name: str, out: str) -> dict[str, str]:
        """What a command has written: a hash of each file, and of the weights of each checkpoint."""
        folder = self.root / out
        files = {}
        for file in sorted(folder.rglob("*")):
            relative = file.relative_to(folder)
            if file.is_file() and not set(relative.parts) & set(NOT_COMPARED):
                files[str(relative)] = hashlib.sha256(_plain(file)).hexdigest()
        for workdir in JOBS[name].weights:
            files[f"weights of {workdir or '.'}"] = _weights(folder / workdir)
        return files


def _plain(file: Path) -> bytes:
    """The bytes of a file; of lines of metrics without the times."""
    if file.suffix != ".jsonl":
        return file.read_bytes()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if "per_s" not in k and "second" not in k and "wait" not in k}
        for line in lines
    ]
    return json.dumps(kept).encode()


def _weights(workdir: Path) -> str:
    """A hash of the newest checkpoint's arrays, optimiser and step included."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints"
    newest = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    digest = hashlib.sha256()
    with ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shardings
        tree = reader.restore(folder / str(newest) / "state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return f"{newest} {digest.hexdigest()}"


def kill_once(place: Place, number: int, name: str, seconds: float, draw: random.Random) -> dict:
    """Starts a command, sends it a signal, and says how it ended."""
    how, after = SIGNALS[number % len(SIGNALS)], draw.uniform(0, seconds)
    process = place.start(name, f"killed.{number}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    ended_before = process.poll() is not None
    begin = time.monotonic()
    process.send_signal(how)
    try:
        _, words = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        _, words = process.communicate()
    codes = (*CODES[how], 0) if JOBS[name].trains or ended_before else CODES[how]
    took = time.monotonic() - begin
    if how == signal.SIGINT and "KeyboardInterrupt" in words and "infinity_jax" not in words:
        codes = (*codes, 1)  # while Python itself starts
    good = process.returncode in codes and took < GRACE and "Segmentation" not in words
    return {
        "kill": number + 1,
        "command": name,
        "signal": how.name,
        "after": f"{after:.1f} of {seconds:.1f} s",
        "ended with": f"{process.returncode}, {took:.1f} s later" + (" (had ended)" if ended_before else ""),
        "as documented": "yes" if good else f"NO: {words[-300:]!r}",
    }


def differences(expected: Mapping[str, str], varying: set[str], result: Mapping[str, str]) -> list[str]:
    """Names of files that are missing, too many, or other than in the undisturbed runs."""
    names = expected.keys() ^ result.keys()
    changed = {n for n in expected.keys() & result.keys() if expected[n] != result[n] and n not in varying}
    return sorted(names | changed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(JOBS), help="names of commands")
    parser.add_argument("--keep", metavar="FOLDER", help="works there, and leaves everything")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored one would be handed on
    draw, names = random.Random(arguments.seed), arguments.only.split(",")
    with contextlib.ExitStack() as stack:
        root = Path(arguments.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        place = Place(root.resolve())
        expected, varying, seconds = {}, {}, {}
        for name in [name for name in JOBS if name in names or (name == "train" and "export" in names)]:
            place.finished(name, f"{name}.0")
            seconds[name] = place.finished(name, f"{name}.1")
            first, second = (place.result(name, f"{name}.{n}") for n in range(2))
            expected[name] = first
            varying[name] = {n for n in first if first[n] != second.get(n)}
            print(
                f"{name}: {seconds[name]:.1f} s, {len(first)} results, not compared as they vary: "
                f"{', '.join(sorted(varying[name])) or 'none'}",
                flush=True,
            )
        lost, undocumented, litter = [], [], []
        # Each at least once, and short ones more often.
        weights = [seconds[name] ** -0.5 for name in names]
        order = [*names, *draw.choices(names, weights, k=max(0, arguments.kills - len(names)))]
        draw.shuffle(order)
        for number, name in enumerate(order[: arguments.kills]):
            row = kill_once(place, number, name, seconds[name], draw)
            place.finished(name, f"killed.{number}")
            other = differences(expected[name], varying[name], place.result(name, f"killed.{number}"))
            left = [n for n in other if "unfinished" in n]
            row["then"] = "undisturbed" if not other else f"OTHER: {', '.join(other[:5])}"
            if number == 0:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
            litter += left
            lost += [number + 1] if len(other) > len(left) else []
            undocumented += [number + 1] if row["as documented"] != "yes" else []
            if not arguments.keep:
                shutil.rmtree(root / f"killed.{number}")
    print(
        f"{arguments.kills} kills; another result than undisturbed: {lost or 'none'}; not ended as documented: "
        f"{undocumented or 'none'}; files left over: {len(litter)}"
    )
    return 1 if lost or undocumented else 0


if __name__ == "__main__":
    sys.exit(main())
