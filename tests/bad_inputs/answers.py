"""What the command line answers to each bad input; `python -m tests.bad_inputs.answers` writes it down anew, to be read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from bench.cli import cli, show_warnings
from tests.bad_inputs.commands import COMMANDS
from tests.bad_inputs.configurations import CONFIGURATIONS
from tests.bad_inputs.places import PLACES, make_places

ANSWERS = Path(__file__).parent / "answers.toml"
Answer = dict[str, object]


def answer_of(*arguments: str) -> Answer:
    """Exit code, and everything that is printed on standard error; what else than an answer leaves is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show_warnings()
        result = CliRunner().invoke(cli, list(arguments), prog_name="bench")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = [line.rstrip() for line in (result.stderr or result.stdout).strip().splitlines()]
    usage = bool(lines) and lines[0].startswith("Usage:")
    return {"exit": result.exit_code, "says": [line for line in lines if line.startswith("Error:")] if usage else lines}


def answer_to(kind: str, name: str) -> Answer:
    """The answer to one bad input; the working directory is one that `make_places` filled."""
    if kind == "configuration":
        text = CONFIGURATIONS[name]
        Path("in.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return answer_of("plan", "in.toml", "--device", "cpu")
    if kind == "command":
        return answer_of(*COMMANDS[name])
    make, arguments = PLACES[name]
    make()
    return answer_of(*arguments)


def clean() -> None:
    """Take away what one bad input left for the next."""
    for path in (*Path().glob("in*"), Path("out"), Path("seeds"), Path("both")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def inputs() -> Iterator[tuple[str, str]]:
    """Every bad input: its kind and its name."""
    for kind, table in (("configuration", CONFIGURATIONS), ("command", COMMANDS), ("place", PLACES)):
        yield from ((kind, name) for name in table)


def load_answers() -> dict[str, dict[str, Answer]]:
    return tomllib.loads(ANSWERS.read_text(encoding="utf-8"))


def main() -> None:
    lines = [
        "# Written by python -m tests.bad_inputs.answers, and read by a person: each must say where, what was given,",
        "# what is allowed, the nearest match, and what to do next.",
    ]
    os.environ |= {"NO_COLOR": "1", "BENCH_TRACE_CACHE": "off"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"BENCH_LOCK_DIR": f"{folder}/locks", "BENCH_DATA": f"{folder}/data"}
        os.chdir(folder)
        make_places()
        for kind, name in inputs():
            answer = answer_to(kind, name)
            clean()
            said = "\n".join(f"    {json.dumps(line, ensure_ascii=True)}," for line in answer["says"])
            lines += ["", f"[{kind}.{json.dumps(name)}]", f"exit = {answer['exit']}", f"says = [\n{said}\n]"]
    ANSWERS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
