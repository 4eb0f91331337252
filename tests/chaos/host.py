"""What a host does to a sweep: stopped, out of memory, out of shared memory, read-only, without a home, a jumping clock.

What needs rights that this account does not have (a mount, a control group) is counted as left out.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import bench
from bench.launchers import LocalLauncher, Outcome
from tests import plugins
from tests.chaos import work
from tests.chaos.fake_sweep import bytes_of, fake_config, run_fake_sweep
from tests.chaos.processes import is_gone, run_and_signal

ROOT = Path(__file__).parents[2]
CONFIG = """
name = "host"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 16
[measure]
repeats = 1
warmup_steps = 1
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""


class NotPermittedError(Exception):
    """This account may not do what the check needs."""


def trouble_host(seed: int, count: int, folder: Path) -> Counter[str]:
    """Every check `count` times."""
    done = Counter[str]()
    for number, (name, check) in itertools.product(range(count), CHECKS.items()):
        place = folder / f"{name.replace(' ', '-').replace('/', '')}-{number}"
        place.mkdir()
        try:
            check(place)
            done[name] += 1
        except NotPermittedError:
            done[f"left out, not permitted: {name}"] += 1
    return done


def _stopped_worker(folder: Path) -> None:
    launcher = LocalLauncher()
    launcher.run(work.answers, None, timeout_s=120)
    answer, told = run_and_signal(launcher, work.waits_with_a_child, "pid", folder / "log", signal.SIGSTOP, timeout_s=3)
    if answer.outcome is not Outcome.TIMED_OUT or answer.phase != "measure" or answer.duration_s > 30:
        raise AssertionError(f"a stopped worker is called {answer}")
    if not is_gone(told["pid"]):
        raise AssertionError("a stopped worker is still there")


PARENT = """
from bench.launchers import LocalLauncher
from tests.chaos import work
launcher = LocalLauncher()
launcher.run(work.answers, None, timeout_s=120)
print("ready", flush=True)
print(launcher.run(work.waits_with_a_child, 1, timeout_s=3).outcome.value, flush=True)
"""


def _stopped_parent(folder: Path) -> None:
    """The run answers in time while the parent is stopped; the parent, continued after the deadline, hears it."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        time.sleep(0.5)
        parent.send_signal(signal.SIGSTOP)
        time.sleep(4)
        parent.send_signal(signal.SIGCONT)
        said = parent.stdout.readline().strip()
    if said != "answered":
        raise AssertionError(f"an answer given while the parent was stopped is called {said!r}")


def _clock_jump(folder: Path) -> None:
    """The wall clock jumps by years with every look; the sweep is the same to the byte."""
    times = (1.7e9 + 1e8 * (-1) ** number * number for number in itertools.count())
    with mock.patch.object(time, "time", lambda: next(times)):
        run_fake_sweep(folder / "jumping", fake_config(cases=2), conclude=False)
    run_fake_sweep(folder / "steady", fake_config(cases=2), conclude=False)
    if bytes_of(folder / "jumping") != bytes_of(folder / "steady"):
        raise AssertionError("the wall clock changes results")


def _full_shared_memory(folder: Path) -> None:
    """A DataLoader without shared memory: the run fails saying what to do, the next is well, and doing it helps."""
    _permitted("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm")
    arguments = ["--set", "grid.input=['loader','synthetic']", "--set", "grid.batch_size=4096"]
    around = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "
    done = _sweep(folder, arguments, around=around)
    frame = bench.load(folder / "out").set_index("input")
    if done.returncode != 1 or frame["status"].to_dict() != {"loader": "failed", "synthetic": "ok"}:
        raise AssertionError(f"{done.returncode}: {frame[['status', 'reason']]}\n{done.stderr}")
    reason = frame.loc["loader", "reason"]
    told = ("/dev/shm is full", "64.0 KiB in all", "--shm-size=8g or --ipc=host, or set measure.loader_workers = 0")
    if not all(words in reason for words in told):
        raise AssertionError(reason)
    remedied = _sweep(folder, [*arguments, "--set", "measure.loader_workers=0"], out=folder / "remedied", around=around)
    if remedied.returncode:
        raise AssertionError(f"the advice does not help: {remedied.returncode}: {remedied.stderr}")


def _read_only_folder(folder: Path) -> None:
    _permitted("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    place = folder / "ro"
    place.mkdir()
    around = f"mount -t tmpfs -o ro tmpfs {place} && exec "
    done = _sweep(folder, [], out=place / "out", around=around)
    _refused(done, 2, "Read-only file system", "choose another --out")


def _no_home(folder: Path) -> None:
    env = {**os.environ, "HOME": "/proc/nowhere"}
    for name in ("BENCH_DATA", "BENCH_TRACE_CACHE"):
        env.pop(name, None)
    done = _sweep(folder, [], env=env)
    if done.returncode or "Traceback" in done.stderr:
        raise AssertionError(f"without a home: {done.returncode}: {done.stderr}")


def _host_out_of_memory(folder: Path) -> None:
    """A control group's limit: the kernel kills the worker, which is a row; the other case is measured."""
    group = Path("/sys/fs/cgroup/memory") / f"bench-chaos-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(3 << 30))
    except OSError as error:
        raise NotPermittedError from error
    try:
        env = plugins.install(folder / "site")
        arguments = ["--set", "grid.model=['bad_eats','good']", "--set", "limits.host_memory='64 GiB'"]
        done = _sweep(folder, arguments, env=env, around=f"echo $$ > {group}/tasks && exec ")
        frame = bench.load(folder / "out").set_index("model")
        if done.returncode != 1 or frame["status"].to_dict() != {"bad_eats": "crashed", "good": "ok"}:
            raise AssertionError(f"{done.returncode}: {frame[['status', 'reason']]}\n{done.stderr}")
        if "SIGKILL (the host's out-of-memory killer does this)" not in frame.loc["bad_eats", "reason"]:
            raise AssertionError(frame.loc["bad_eats", "reason"])
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def _half_a_word(folder: Path) -> None:
    """A worker stops in the middle of a message: the deadline holds all the same."""
    answer = LocalLauncher().run(work.stops_in_the_middle_of_a_word, None, timeout_s=5)
    if answer.outcome is not Outcome.TIMED_OUT:
        raise AssertionError(f"half a message is called {answer}")


def _sweep(
    folder: Path, arguments: Sequence[str], *, out: Path | None = None, around: str = "exec ",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The real command, from a shell of its own mounts that does `around` first."""
    config = folder / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--out", str(out or folder / "out")]
    shell = ["sh", "-c", f'{around}"$0" "$@"', *command, "--device", "cpu", *arguments]
    isolated = ["unshare", "-m"] if "mount" in around else []
    environment = {"PYTHONPATH": str(ROOT), **(env if env is not None else os.environ)}
    return subprocess.run([*isolated, *shell], capture_output=True, text=True, env=environment, check=False, cwd=folder)


def _permitted(*command: str) -> None:
    """Raise NotPermittedError where a process with mounts of its own may not do this."""
    try:
        subprocess.run(["unshare", "-m", *command], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPermittedError from error


def _refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    if done.returncode != code or "Traceback" in done.stderr or not all(word in done.stderr for word in words):
        raise AssertionError(f"left with {done.returncode}: {done.stderr}")


CHECKS = {
    "stopped worker": _stopped_worker, "stopped parent": _stopped_parent, "half a word": _half_a_word,
    "clock jump": _clock_jump, "full /dev/shm": _full_shared_memory, "read-only folder": _read_only_folder,
    "no home": _no_home, "host out of memory": _host_out_of_memory,
}  # fmt: skip
