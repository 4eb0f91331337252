"""What a host does to a sweep: stopped, out of memory, out of shared memory, read-only, without a home, a jumping clock.

What needs rights that this account does not have (a mount, a control group) is counted as left out, with the reason.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import bench
from bench.launchers import LocalLauncher, Outcome
from tests import plugins
from tests.chaos import work
from tests.chaos.clock import jump_below_deadline, jump_below_sweep, jump_below_writer, jumping_everywhere
from tests.chaos.processes import is_gone, run_and_signal

ROOT = Path(__file__).parents[2]
OWN_MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
"""Starts a command with mounts of its own; who is not root becomes it in there, where the kernel lets users do so."""

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
    """This account may not do what the check needs; the message says what."""


def trouble_host(seed: int, count: int, folder: Path) -> Counter[str]:
    """Every check `count` times."""
    done = Counter[str]()
    for number, (name, check) in itertools.product(range(count), CHECKS.items()):
        place = folder / f"{name.replace(' ', '-').replace('/', '')}-{number}"
        place.mkdir()
        try:
            check(place)
            done[name] += 1
        except NotPermittedError as error:
            done[f"skipped: {name} ({error})"] += 1
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


def _clock_jump_in_command(folder: Path) -> None:
    """The real command, each of whose processes sees the clock jump by years."""
    done = _sweep(folder, [], env=jumping_everywhere(folder))
    frame = bench.load(folder / "out")
    if done.returncode or not frame["status"].eq("ok").all() or not frame["duration_s"].between(0, 300).all():
        raise AssertionError(f"{done.returncode}: {frame[['status', 'reason', 'duration_s']]}\n{done.stderr}")
    if not frame["process_start_s"].between(0, 300).all() or not frame["wall_window_s"].between(0, 300).all():
        raise AssertionError(f"a jumping clock is in {frame[['process_start_s', 'wall_window_s']]}")


def _full_shared_memory(folder: Path) -> None:
    """A DataLoader without shared memory: the run fails saying what to do, the next is well, and doing it helps."""
    _permitted("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm")
    arguments = ["--set", "grid.input=['loader','synthetic']", "--set", "grid.batch_size=4096"]
    around = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "
    done = _sweep(folder, arguments, around=around)
    frame = bench.load(folder / "out").set_index("input")
    if done.returncode != 1 or frame["status"].to_dict() != {"loader": "oom", "synthetic": "ok"}:
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
    with _control_group(3 << 30) as joins:
        env = plugins.install(folder / "site")
        arguments = ["--set", "grid.model=['bad_eats','good']", "--set", "limits.host_memory='64 GiB'"]
        done = _sweep(folder, arguments, env=env, around=f"echo $$ > {joins} && exec ")
        frame = bench.load(folder / "out").set_index("model")
        if done.returncode != 1 or frame["status"].to_dict() != {"bad_eats": "oom", "good": "ok"}:
            raise AssertionError(f"{done.returncode}: {frame[['status', 'reason']]}\n{done.stderr}")
        if "the kernel killed a process of this control group" not in frame.loc["bad_eats", "reason"]:
            raise AssertionError(frame.loc["bad_eats", "reason"])


@contextlib.contextmanager
def _control_group(limit_bytes: int) -> Iterator[Path]:
    """A control group of so much memory, and no swap; gives the file that takes the process which is to be in it.

    Raises:
        NotPermittedError: This account may make none; the message says why.
    """
    parent, limit, joins = memory_groups()
    group = parent / f"bench-chaos-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # not every kernel counts swap; version 1 is without it here
            (group / "memory.swap.max").write_text("0")
        subprocess.run(["sh", "-c", f"echo $$ > {group / joins}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(group)
        raise NotPermittedError(f"no control group in {parent}: {_why(error)}") from error
    try:
        yield group / joins
    finally:
        _remove(group)


def memory_groups(
    mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[Path, str, str]:
    """Where control groups with a limit on memory can be made; the names of the limit's and of the processes' file.

    Version 1 has a tree of its own for memory. In version 2 the controller must have been handed down: the nearest group
    above this process's is taken that gives it to the groups below.

    Args:
        mounted: Where the kernel's control groups are mounted.
        own: The kernel's list of the groups that this process is in.

    Raises:
        NotPermittedError: There is no such place.
    """
    if (mounted / "memory" / "memory.limit_in_bytes").exists():
        return mounted / "memory", "memory.limit_in_bytes", "tasks"
    try:
        (path,) = [line.removeprefix("0::/") for line in own.read_text().splitlines() if line.startswith("0::/")]
        here = mounted / path
        for group in (here, *here.parents):
            if "memory" in (group / "cgroup.subtree_control").read_text().split():
                return group, "memory.max", "cgroup.procs"
            if group == mounted:
                break
    except (OSError, ValueError) as error:
        raise NotPermittedError(f"no control groups in {mounted}: {_why(error)}") from error
    raise NotPermittedError(f"no control group from {here} up hands the memory controller down (version 2)")


def _remove(group: Path) -> None:
    """Delete a control group once its processes have ended."""
    for _ in range(100):
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.1)


def _half_a_word(folder: Path) -> None:
    """A worker stops in the middle of a message: the deadline holds all the same."""
    answer = LocalLauncher().run(work.stops_in_the_middle_of_a_word, None, timeout_s=5)
    if answer.outcome is not Outcome.TIMED_OUT:
        raise AssertionError(f"half a message is called {answer}")


def _sweep(
    folder: Path,
    arguments: Sequence[str],
    *,
    out: Path | None = None,
    around: str = "exec ",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The real command, from a shell of its own mounts that does `around` first."""
    config = folder / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--out", str(out or folder / "out")]
    shell = ["sh", "-c", f'{around}"$0" "$@"', *command, "--device", "cpu", *arguments]
    isolated = OWN_MOUNTS if "mount" in around else []
    environment = {"PYTHONPATH": str(ROOT), **(env if env is not None else os.environ)}
    return subprocess.run([*isolated, *shell], capture_output=True, text=True, env=environment, check=False, cwd=folder)


def _permitted(*command: str) -> None:
    """Raise NotPermittedError where a process with mounts of its own may not do this."""
    try:
        subprocess.run([*OWN_MOUNTS, *command], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPermittedError(_why(error)) from error


def _why(error: Exception) -> str:
    """An error in a line; of a command, what it said."""
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
    return (said or str(error)).strip().splitlines()[-1]


def _refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    if done.returncode != code or "Traceback" in done.stderr or not all(word in done.stderr for word in words):
        raise AssertionError(f"left with {done.returncode}: {done.stderr}")


CHECKS = {
    "stopped worker": _stopped_worker,
    "stopped parent": _stopped_parent,
    "half a word": _half_a_word,
    "clock jump in a sweep": jump_below_sweep,
    "clock jump beside a writer": jump_below_writer,
    "clock jump in a deadline": jump_below_deadline,
    "clock jump in the command": _clock_jump_in_command,
    "full /dev/shm": _full_shared_memory,
    "read-only folder": _read_only_folder,
    "no home": _no_home,
    "host out of memory": _host_out_of_memory,
}
