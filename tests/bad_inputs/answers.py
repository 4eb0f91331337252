"""What the command line must answer to each bad input: the exit code and, for each line, its place and its key nouns.

The words around them may change freely. `python -m tests.bad_inputs.answers` prints every answer in full, to be read, and
writes their nouns to `answers.toml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from click.testing import CliRunner

from bench.cli import cli, show_warnings
from tests.bad_inputs.commands import COMMANDS
from tests.bad_inputs.configurations import CONFIGURATIONS
from tests.bad_inputs.places import PLACES, make_places

ANSWERS = Path(__file__).parent / "answers.toml"
Answer = dict[str, object]

_PLACE = re.compile(r"(?:[^\s:\"']+(?::\d+)?: )+")
"""What stands before a message: `in.toml: grid.batch_size[0]: `, `in.csv:2: `."""

_NOUN = re.compile(
    r"""
    "(?:[^"\\]|\\.)*" | (?<!\w)'(?:[^'\\]|\\.)+' | `[^`]+`  # what was given or is allowed, quoted
    | (?:Nearest|Allowed|Available):[^.;]*                   # lists of names
    | \bbench\ [a-z]+(?:\ [a-z]+s\b)?                        # what to run next
    | (?<!\w)--[a-z][a-z-]*                                  # options
    | [\w/~-]*[._/][\w./\[\]-]*\w\]?                         # paths and keys
    | (?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?                      # numbers
    | \b[a-z]+\d\w*                                          # float32, bf16
    | \b[A-Z][A-Za-z]*[A-Z][\w-]*                            # TOML, GPU, UTF-8, CSV
    | \b(?:unknown|missing|empty|damaged|changed|nested|digits|newer|inf|nan|true|false|text|table|list|numbers?
        |fraction|duration|memory|interval|share|powers?|range|above|below|more|less|settings?|sections?|devices?
        |datasets?|models?|optimizers?|precision|batch|folders?|results|bundles?|archive|manifest|digest|recordings?
        |columns?|cells|status|cases?|baseline|metric|field|price|margin|confidence|version|hash|regular
        |images|pixels|shape|classes|steps|timeline|sources?|values?)\b
    """,
    re.VERBOSE,
)
"""What a message must not lose, however it is worded."""


def nouns_of(line: str) -> tuple[str, list[str]]:
    """The place and the key nouns of one printed line."""
    line = line.strip().removeprefix("error: ")
    place = found[0] if (found := _PLACE.match(line)) else ""
    return place.strip(), [noun.strip() for noun in _NOUN.findall(line[len(place) :])]


def lost(expected: Sequence[str], line: str) -> list[str]:
    """What of `expected`, a place and key nouns, the line does not hold."""
    place, nouns = nouns_of(line)
    return [*([expected[0]] if place != expected[0] else []), *(Counter(expected[1:]) - Counter(nouns))]


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
        "# Written by python -m tests.bad_inputs.answers: for each printed line its place, then its key nouns. A message must",
        "# say where, what was given, what is allowed, the nearest match and what to do next; its wording is free.",
    ]
    os.environ |= {"NO_COLOR": "1", "BENCH_TRACE_CACHE": "off", "BENCH_CALIBRATIONS": "off", "BENCH_FIGURES": "off"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"BENCH_LOCK_DIR": f"{folder}/locks", "BENCH_DATA": f"{folder}/data"}
        os.chdir(folder)
        make_places()
        for kind, name in inputs():
            answer = answer_to(kind, name)
            clean()
            print(f"{kind}: {name}: exit {answer['exit']}", *answer["says"], sep="\n  ")
            kept = [[place, *nouns] for place, nouns in map(nouns_of, answer["says"])]
            said = "\n".join(f"    {json.dumps(line, ensure_ascii=True)}," for line in kept)
            lines += ["", f"[{kind}.{json.dumps(name)}]", f"exit = {answer['exit']}", f"says = [\n{said}\n]"]
    ANSWERS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
