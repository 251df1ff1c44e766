"""The prompts of the field's benchmarks, and where the evaluator of each looks for which picture.

No prompts are part of this project: the user names the benchmark's own file or folder. Pictures lie in the folder
that the user names, or, where the evaluator takes every file there for one of its own, in images/ below it, so that
the evaluation card can lie beside them.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging

from infinity_jax.errors import UserError
from infinity_jax.evaluation.benchmarks import prompt_files

HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
IMAGES = "images"


@dataclass(frozen=True)
class Prompt:
    """A prompt and its files, with paths relative to the evaluator's folder.

    Attributes:
      text: what to draw.
      files: one path a picture; a single one where all pictures are parts of a grid.
      texts: other files that the evaluator reads, path -> content.
    """

    text: str
    files: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark wants its pictures.

    Attributes:
      name: of --benchmark.
      prompts: what the user names, for the help.
      files: the files that hold the prompts, in order, of the path that the user names.
      read: the prompts of such files.
      pictures: of each prompt.
      grid: whether they are put together into one file of 2x2 pictures.
      folder: the evaluator's, relative to the user's.
      whole: whether its evaluator takes a picture of every prompt for granted, and fails or misjudges without.
      project: where the evaluator lies.
      commands: what is run next; {images}, {out}, {prompts} (quoted paths) and {side} are filled in.
    """

    name: str
    prompts: str
    files: Callable[[Path], list[Path]]
    read: Callable[[list[Path]], list[Prompt]]
    pictures: int
    project: str
    commands: tuple[str, ...]
    grid: bool = False
    folder: str = ""
    whole: bool = False

    def next_commands(self, out: Path, prompts: Path, side: int) -> list[str]:
        """Returns the evaluator's commands for the pictures in `out`; the user puts paths in the place of <...>."""
        paths = {"images": out / self.folder, "out": out, "prompts": prompts}
        quoted = {name: shlex.quote(str(path.absolute())) for name, path in paths.items()}
        return [command.format(**quoted, side=side) for command in self.commands]


@dataclass(frozen=True)
class PromptSet:
    """The user's copy of a benchmark's prompts.

    Attributes:
      path: of the file or folder.
      sha256: of its files.
    """

    benchmark: Benchmark
    path: Path
    prompts: list[Prompt]
    sha256: str


def read(benchmark: Benchmark, path: Path, limit: int | None = None) -> PromptSet:
    """Reads the prompts of the user's copy, the first `limit` of them.

    Raises:
      UserError: a file is missing or damaged; the message names it, and the line.
    """
    path = path.expanduser()
    files = benchmark.files(path)
    prompts = benchmark.read(files)
    names = (name for prompt in prompts for name in (*prompt.files, *prompt.texts))
    prompt_files.different(names, str(path))
    if benchmark.whole and limit is not None and limit < len(prompts):
        logging.warning("the evaluator of %s needs pictures of all %d prompts", benchmark.name, len(prompts))
    return PromptSet(benchmark, path, prompts[:limit], prompt_files.sha256(files))


def _one_file(path: Path) -> list[Path]:
    if path.is_dir():
        raise UserError(f"the prompts {path} are a folder; name the benchmark's own file in it")
    return [path]


def _geneval(files: list[Path]) -> list[Prompt]:
    """Reads evaluation_metadata.jsonl, an object with "prompt" and "tag" a line -> 00000/samples/0000.png ... 0003.png.

    00000/metadata.jsonl holds the prompt's line. Source: djghosh13/geneval, README.md (the tree of its image folder)
    and evaluation/evaluate_images.py, which skips what is no folder with a number for a name.
    """
    prompts = []
    for number, (where, line, entry) in enumerate(prompt_files.json_lines(files[0])):
        prompt_files.value_of(entry, "tag", where)
        folder = f"{number:05d}"
        prompts.append(
            Prompt(
                prompt_files.prompt_of(entry, "prompt", where),
                tuple(f"{folder}/samples/{i:04d}.png" for i in range(GENEVAL.pictures)),
                {f"{folder}/metadata.jsonl": line.strip() + "\n"},
            )
        )
    return prompts


def _dpg_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise UserError(f"{path} is no folder with prompts (*.txt); name the folder prompts/ of DPG-Bench")
    return files


def _dpg(files: list[Path]) -> list[Prompt]:
    """Reads a folder of NAME.txt, one prompt each -> NAME.png, its 4 pictures as 2x2, row by row.

    Source: TencentQQGYLab/ELLA, README.md (section DPG-Bench) and dpg_bench/compute_dpg_bench.py, which cuts squares
    of the side that it is told out of the grid, and looks up the name up to its first dot among its questions. It takes
    every file of the folder for a picture.
    """
    prompts = []
    for file in files:
        name = prompt_files.file_name(file.stem, f"{file}, line 1")
        text = prompt_files.plain(prompt_files.read_text(file), f"{file}, line 1")
        prompts.append(Prompt(text, (f"{name}.png",)))
    return prompts


def _hps_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"no folder {path}; name the one with {', '.join(f'{s}.json' for s in HPS_STYLES)}")
    return [path / f"{style}.json" for style in HPS_STYLES]


def _hps(files: list[Path]) -> list[Prompt]:
    """Reads STYLE.json of four styles, lists of texts -> STYLE/00000.jpg ...

    Source: tgxs002/HPSv2, README.md (section Custom Evaluation), hpsv2/utils.py (names of the files) and
    hpsv2/evaluation.py, which takes every entry of the folder for a style.
    """
    return [
        Prompt(prompt_files.plain(text, where), (f"{file.stem}/{i:05d}.jpg",))
        for file in files
        for i, (where, text) in enumerate(prompt_files.entries(file))
    ]


def _image_reward(files: list[Path]) -> list[Prompt]:
    """Reads benchmark-prompts.json, a list of {"id", "prompt"} -> ID_0.png ... ID_9.png.

    Source: THUDM/ImageReward, test-benchmark.py, which divides the number of files in the folder by that of prompts to
    know how many pictures a prompt has. 10 are what evaluation/image_reward of FoundationVision/Infinity draws.
    """
    prompts = []
    for where, entry in prompt_files.entries(files[0]):
        name = prompt_files.file_name(prompt_files.value_of(entry, "id", where), where)
        text = prompt_files.prompt_of(entry, "prompt", where)
        prompts.append(Prompt(text, tuple(f"{name}_{k}.png" for k in range(IMAGE_REWARD.pictures))))
    return prompts


def _mjhq(files: list[Path]) -> list[Prompt]:
    """Reads meta_data.json, {id: {"category", "prompt"}} -> CATEGORY/ID.png, as the real ones are CATEGORY/ID.jpg.

    Source: the data set playgroundai/MJHQ-30K on Hugging Face: meta_data.json, mjhq30k_imgs.zip. FID takes a folder of
    pictures of any names; with folders for the categories it can be taken of each.
    """
    prompts = []
    for key, entry in prompt_files.read_json(files[0], dict).items():
        where = f"{files[0]}, entry {key!r}"
        category = prompt_files.file_name(prompt_files.value_of(entry, "category", where), where)
        name = prompt_files.file_name(key, where)
        prompts.append(Prompt(prompt_files.prompt_of(entry, "prompt", where), (f"{category}/{name}.png",)))
    return prompts


def _coco(files: list[Path]) -> list[Prompt]:
    """Reads captions_val2014.json and the like -> 000000391895.png, the picture's id, drawn from its first caption.

    "annotations" is a list of {"id", "image_id", "caption"}; the first caption is the one with the lowest id, pictures
    come in the order of their ids. Source: the data format on cocodataset.org. FID takes a folder of pictures of any
    names.
    """
    file = files[0]
    first: dict[int, tuple[int, str]] = {}
    annotations = prompt_files.value_of(prompt_files.read_json(file, dict), "annotations", str(file))
    if not isinstance(annotations, list) or not annotations:
        raise UserError(
            f'{file}: "annotations" is no list of captions; name captions_val2014.json or the like'
        )
    for i, entry in enumerate(annotations):
        where = f"{file}, annotation {i + 1}"
        image, number = (prompt_files.value_of(entry, key, where) for key in ("image_id", "id"))
        if not (isinstance(image, int) and isinstance(number, int)):
            raise UserError(f"{where}: image_id {image!r} and id {number!r} must be whole numbers")
        if image not in first or number < first[image][0]:
            first[image] = number, prompt_files.prompt_of(entry, "caption", where)
    return [Prompt(text, (f"{image:012d}.png",)) for image, (_, text) in sorted(first.items())]


_FID = (
    "infinity-jax fid --generated {images} --real <REAL_IMAGES> --inception <pt_inception-2015-12-05.pth> "
    "--json <FID.json>"
)
GENEVAL = Benchmark(
    "geneval",
    "evaluation_metadata.jsonl",
    _one_file,
    _geneval,
    4,
    "https://github.com/djghosh13/geneval",
    (
        "python evaluation/evaluate_images.py {images} --outfile <RESULTS_FOLDER>/results.jsonl "
        "--model-path <OBJECT_DETECTOR_FOLDER>",
        "python evaluation/summary_scores.py <RESULTS_FOLDER>/results.jsonl",
    ),
)
DPG = Benchmark(
    "dpg",
    "the folder dpg_bench/prompts",
    _dpg_files,
    _dpg,
    4,
    "https://github.com/TencentQQGYLab/ELLA",
    ("bash dpg_bench/dist_eval.sh {images} {side}",),
    grid=True,
    folder=IMAGES,
)
HPS = Benchmark(
    "hpsv2",
    "the folder with anime.json, concept-art.json, paintings.json, photo.json",
    _hps_files,
    _hps,
    1,
    "https://github.com/tgxs002/HPSv2",
    ("""python -c "import sys, hpsv2; hpsv2.evaluate(sys.argv[1], hps_version='v2.1')" {images}""",),
    folder=IMAGES,
    whole=True,
)
IMAGE_REWARD = Benchmark(
    "image_reward",
    "benchmark-prompts.json",
    _one_file,
    _image_reward,
    10,
    "https://github.com/THUDM/ImageReward",
    (
        "python test-benchmark.py --prompts_path {prompts} --img_dir {out} --model images "
        "--benchmark ImageReward-v1.0",
    ),
    folder=IMAGES,
    whole=True,
)
MJHQ = Benchmark(
    "mjhq",
    "meta_data.json",
    _one_file,
    _mjhq,
    1,
    "https://huggingface.co/datasets/playgroundai/MJHQ-30K",
    (_FID,),
)
COCO = Benchmark("coco", "captions_val2014.json", _one_file, _coco, 1, "https://cocodataset.org", (_FID,))
BENCHMARKS = {b.name: b for b in (GENEVAL, DPG, HPS, IMAGE_REWARD, MJHQ, COCO)}
