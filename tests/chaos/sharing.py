"""Two hosts that sweep into one shared folder at once, where the lock of one is not seen by the other."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

from bench.store import load_notes, load_results
from bench.sweep import session, stages
from tests.chaos.attempts import prepare
from tests.chaos.fake_sweep import CPU, FakeLauncher, fake_config, run_fake_sweep

HOSTS = (CPU, replace(CPU, host_hash="1" * 16), replace(CPU, device="cpu", torch_version="2.16.0", host_hash="2" * 16))


def share_folder(seed: int, count: int, folder: Path) -> Counter[str]:
    """`count` times: hosts sweep into one folder at once, one is killed and resumed; every run of each is there once."""
    generator, done = random.Random(seed), Counter[str]()
    config = fake_config(cases=3, repeats=2)
    prepare(config)
    for number in range(count):
        place = folder / f"shared-{number}"
        children = [_sweep(place, host) for host in range(len(HOSTS))]
        time.sleep(generator.uniform(0, 0.3))
        os.kill(children[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        again = os.waitstatus_to_exitcode(os.waitpid(_sweep(place, 0), 0)[1])
        if any(code not in (0, -signal.SIGKILL) for code in [*codes, again]) or again:
            raise AssertionError(f"{place}: ended with {codes}, then {again}; tracebacks above")
        frame = load_results(place / "data")
        last = frame[frame["status"] != "throttled"]
        if len(load_notes(place)) != len(HOSTS) or set(frame["status"]) & {"interrupted"}:
            raise AssertionError(f"{place}: not every host's runs are there")
        if last.duplicated(["environment_key", "case_key", "repeat"]).any() or frame["run_key"].duplicated().any():
            raise AssertionError(f"{place}: a run is there twice")
        done["hosts"] += len(HOSTS)
        done["killed in the middle"] += codes[0] != 0
        done["runs"] += len(frame)
    return done


def _sweep(place: Path, host: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (
            mock.patch.object(stages, "hold", lambda *arguments: contextlib.nullcontext()),
            mock.patch.object(session, "hold", lambda *arguments: contextlib.nullcontext()),
        ):
            run_fake_sweep(place, fake_config(cases=3, repeats=2), FakeLauncher(HOSTS[host]), conclude=False)
        code = 0
    except BaseException:  # noqa: BLE001 - a child ends here, whatever happened
        traceback.print_exc()
    os._exit(code)
