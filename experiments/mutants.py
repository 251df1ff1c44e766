"""Do the tests notice? Plants small errors in the training and sampling code, one at a time, and runs its tests.

    python experiments/mutants.py planted --out out/planted.jsonl
    python experiments/mutants.py sampled --share 0.1 --seed 0 --out out/mutants.jsonl
    python experiments/mutants.py report out/mutants.jsonl

`planted` plants the errors of experiments/planted_errors.toml, `sampled` a share of what the operators of cosmic-ray
make of the files in `[tool.mutants]` of pyproject.toml. Both go on where they stopped; neither touches the checkout,
of which they change a copy. docs/design/mutants.md says what came out, and why neither mutmut nor cosmic-ray runs them.
"""

import argparse
import ast
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]
PACKAGE = "infinity_jax"
# Imported before the fork, with all that they import: which takes longer than most tests.
PRELOADED = ("pytest", "optax", "hypothesis", f"{PACKAGE}.training.train_transformer",
             f"{PACKAGE}.training.train_tokenizer", f"{PACKAGE}.sampling.pipeline")  # fmt: skip
# Calls whose arguments say where arrays lie, or how a value is typed.
NOT_MUTATED_CALLS = {"constrain", "cast"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file of the package, what it would become, and the tests that should fail.

    Attributes:
      name: of the file, the operator and the place; the same in every run of the same file.
      change: the line before and after.
    """

    name: str
    file: str
    source: str
    tests: tuple[str, ...]
    change: tuple[str, str]


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("planted", "sampled", "report"))
    parser.add_argument("results", nargs="?", type=Path, help="for report: the file that --out named")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "mutants.jsonl")
    parser.add_argument("--share", type=float, default=CONFIG["share"], help="of the places of each file")
    parser.add_argument("--seed", type=int, default=CONFIG["seed"])
    parser.add_argument("--files", nargs="*", default=list(CONFIG["tests"]), help="of `[tool.mutants.tests]`")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no new mutant is begun after these"
    )
    args = parser.parse_args()
    if args.command == "report":
        print(report(read(args.results or args.out)))
        return
    mutants = planted() if args.command == "planted" else sampled(args.files, args.share, args.seed)
    args.out = args.out.resolve()  # mutants run in another folder
    args.out.parent.mkdir(parents=True, exist_ok=True)
    run(list(mutants), args.out, time.monotonic() + args.seconds)
    print(report(read(args.out)))


def planted() -> Iterator[Mutant]:
    """Yields the errors that are written down, each with the one test that must notice it."""
    for error in tomllib.loads((ROOT / "experiments" / "planted_errors.toml").read_text())["error"]:
        source = (ROOT / PACKAGE / error["file"]).read_text()
        if source.count(error["before"]) != 1:
            raise SystemExit(
                f"{error['name']}: {error['before']!r} does not stand once in {error['file']}; correct it"
            )
        changed = source.replace(error["before"], error["after"])
        yield Mutant(
            error["name"], error["file"], changed, (error["test"],), (error["before"], error["after"])
        )


def sampled(files: list[str], share: float, seed: int) -> Iterator[Mutant]:
    """Yields a share of the mutants of each file, one at most for a place and kind of operator."""
    from cosmic_ray import mutating, plugins  # pyright: ignore[reportMissingImports]
    from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]

    for file in files:
        source = (ROOT / PACKAGE / file).read_text()
        tree, skipped, places = get_ast(source), exempt(source), {}
        for operator in CONFIG["operators"]:
            for name in sorted(n for n in plugins.operator_names() if n.split("/")[1].startswith(operator)):
                positions = (
                    p
                    for node in ast_nodes(tree)
                    for p in plugins.get_operator(name)().mutation_positions(node)
                )
                for number, (start, end) in enumerate(positions):
                    if not any(first <= start and end <= last for first, last in skipped):
                        places.setdefault((start, operator), []).append((name, number))
        # By the file's name: so adding a file changes no other's sample.
        chance = random.Random(f"{seed}/{file}")
        chosen = sorted(chance.sample(sorted(places), max(1, round(share * len(places)))))
        for place in chosen:
            name, number = chance.choice(places[place])
            changed = str(mutating.mutate_code(source, plugins.get_operator(name)(), number))
            if not is_python(changed):  # `**` of a call or a dict is no power
                continue
            (line, column), tests = place[0], tuple(CONFIG["tests"][file])
            before, after = (text.splitlines()[line - 1].strip() for text in (source, changed))
            place_name = f"{file}:{line}:{column} {name.split('/')[1]}"
            yield Mutant(place_name, file, changed, tests, (before, after))


def is_python(source: str) -> bool:
    """Tells whether a text can be parsed."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def exempt(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Lists the places that are left alone: annotations, decorators, messages of errors, layout, and all text."""
    spans = []

    def leave(node: ast.AST | None) -> None:
        if node is not None:
            spans.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))  # pyright: ignore

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            leave(node.annotation)
        if isinstance(node, ast.FunctionDef):
            leave(node.returns)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                leave(decorator)
        if isinstance(node, ast.Raise | ast.JoinedStr):
            leave(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("Callable", "tuple[")):
            leave(node)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in NOT_MUTATED_CALLS:
            for argument in node.args[1:]:
                leave(None if isinstance(argument, ast.Call) else argument)
            if getattr(node.func, "id", "") == "cast":
                leave(node.args[0])
    return spans


def run(mutants: list[Mutant], out: Path, end: float) -> None:
    """Runs the tests of each mutant that has no line in `out` yet, and writes the line."""
    done = {result["name"] for result in read(out)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        preload(copy)
        for test in sorted({test for mutant in mutants for test in mutant.tests if mutant.name not in done}):
            if not (copy / test.split("::")[0]).exists():
                raise SystemExit(f"{test} is not there; correct `[tool.mutants.tests]`")
        for number, mutant in enumerate(mutants, 1):
            if mutant.name in done or time.monotonic() > end:
                continue
            result = try_one(copy, mutant)
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number}/{len(mutants)} {result['outcome']} {result['seconds']:.0f} s {mutant.name}",
                flush=True,
            )


def preload(copy: Path) -> None:
    """Imports what every mutant needs, the package from the copy; jax must not have started its threads yet."""
    sys.dont_write_bytecode = True
    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "tests")]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
    __import__("conftest")
    for name in PRELOADED:
        __import__(name)
    from jax._src import xla_bridge

    if xla_bridge._backends:
        raise SystemExit(
            "an import started jax: a process that is forked now would hang. Find it and make it lazy"
        )


def dependents(changed: str) -> set[str]:
    """Lists the loaded modules of the package and the tests that import a module, or one that does."""
    imports = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in (PACKAGE, "helpers") and getattr(module, "__file__", None):
            tree = ast.parse(Path(str(module.__file__)).read_text())
            own = imports.setdefault(name, set())
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    own |= {alias.name for alias in node.names}
                if isinstance(node, ast.ImportFrom):
                    own |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = {changed}
    while more := {name for name, own in imports.items() if own & found} - found:
        found |= more
    return found


def try_one(copy: Path, mutant: Mutant) -> dict:
    """Runs a mutant's tests in a fork, up to the first that fails."""
    path, start = copy / PACKAGE / mutant.file, time.monotonic()
    original = path.read_text()
    log = copy.parent / "log"
    path.write_text(mutant.source)
    try:
        child = os.fork()
        if child == 0:
            in_child(mutant, log)
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
        signal.alarm(CONFIG["seconds_per_mutant"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.alarm(0)
    finally:
        path.write_text(original)
    text = log.read_text(errors="replace")
    failed = [line.split(" ")[1] for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    # pytest: 0 all passed, 1 some failed, 2 a test file could not be imported. Else something else went wrong.
    outcome = {0: "survived", 1: "killed", 2: "killed", -signal.SIGKILL: "killed"}.get(
        code, f"broken: {code}"
    )
    by = failed[0] if failed else "time limit" if code == -signal.SIGKILL else ""
    if outcome.startswith("broken"):
        print(text[-2000:])
    return {
        "name": mutant.name, "file": mutant.file, "outcome": outcome, "by": by,
        "before": mutant.change[0], "after": mutant.change[1], "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def in_child(mutant: Mutant, log: Path) -> None:
    """Forgets the module and all that import it, and runs the tests; does not return."""
    os.setpgid(0, 0)
    code = 99
    try:
        target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(target, stream)
        for name in dependents(f"{PACKAGE}.{mutant.file.removesuffix('.py').replace('/', '.')}"):
            sys.modules.pop(name, None)
            parent, _, own = name.rpartition(".")
            if parent in sys.modules and hasattr(sys.modules[parent], own):
                # `from package import module` asks the package first.
                delattr(sys.modules[parent], own)
        import pytest

        # Plugins that are loaded before pytest are no reason to fail.
        options = (
            "-x -q --tb=line -p no:cacheprovider -p no:xdist -W ignore::pytest.PytestAssertRewriteWarning"
        )
        code = int(pytest.main([*options.split(), *mutant.tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def read(path: Path) -> list[dict]:
    """Reads the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(results: list[dict]) -> str:
    """Writes two tables in markdown: of each file, and of the survivors with their reasons."""
    reasons = tomllib.loads((ROOT / "experiments" / "surviving_mutants.toml").read_text())
    lines = ["| file | mutants | killed | survived | seconds |", "|---|---|---|---|---|"]
    for file in [*dict.fromkeys(result["file"] for result in results), "all"]:
        own = [result for result in results if file in (result["file"], "all")]
        killed = sum(result["outcome"] == "killed" for result in own)
        seconds = sum(result["seconds"] for result in own)
        lines.append(f"| {file} | {len(own)} | {killed} | {len(own) - killed} | {seconds:.0f} |")
    lines += ["", "| survivor | before | after | why |", "|---|---|---|---|"]
    for result in results:
        if result["outcome"] != "killed":
            why = reasons.get(result["name"], "no reason yet")
            lines.append(f"| {result['name']} | `{result['before']}` | `{result['after']}` | {why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
