"""What torch says of itself and of the GPUs, read in a separate process.

`read_torch_facts` starts a Python for it, so that a parent stays free of torch and CUDA: asking
torch whether CUDA works initialises CUDA, which spoils every later fork, and a broken driver can crash or hang whoever
asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.interpreters import run_python
from bench.launchers.faults import Blame, find_blame, last_words
from bench.probes.backends import Backend, accelerator

_MARK = "bench-torch-facts:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """Torch's build, and what it could do with the GPUs. `error` is set where torch could not even be asked."""

    error: str | None = None
    kind: str = "cuda"  # of the GPUs, as torch calls it: one of `records.ACCELERATORS`
    version: str | None = None
    cuda_version: str | None = None  # of the build; None for a CPU or ROCm build
    hip_version: str | None = None
    xpu_version: str | None = None
    has_mps: bool = False  # the build, whatever the machine
    arch_list: tuple[str, ...] = ()
    available: bool = False
    device_count: int = 0
    device_names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    unified: tuple[bool, ...] = ()  # whether each takes host memory
    total_bytes: tuple[int, ...] = ()
    mps: tuple[bool, ...] = ()  # whether CUDA's Multi-Process Service is known to serve each
    uuids: tuple[str, ...] = ()  # bare, as CUDA writes them; empty if this torch does not tell
    archs: tuple[str, ...] = ()  # of AMD's GPUs: gfx942:sramecc+:xnack-
    silence: str | None = None  # what no run there will have readings of
    warning: str | None = None  # what torch warned of while it was asked, where CUDA is not available
    trial_error: str | None = None  # why a small addition on the first GPU failed
    blame: Blame | None = None  # the variable for which torch could not be asked, or the addition failed


def read_torch_facts(timeout_s: float = 120.0) -> TorchFacts:
    """Ask torch in a fresh process; 3 to 10 s, as long as its import takes. Never raises: `error` says what failed."""

    def ask(environment: Mapping[str, str]) -> tuple[TorchFacts, str]:
        try:
            asked = run_python("bench.probes.torch_facts", "print_facts", environment=environment, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return TorchFacts(error=f"torch did not report its GPUs within {timeout_s:g} s"), ""
        answers = [line for line in asked.stdout.splitlines() if line.startswith(_MARK)]
        if answers:
            facts = parse_facts(answers[-1].removeprefix(_MARK))
            error = facts.error or facts.trial_error
            return facts, f"{error}\n{asked.stderr}" if error else ""
        said = last_words(asked.stderr)
        error = f"querying torch for its GPUs failed with exit code {asked.returncode}: {said or 'no message'}"
        return TorchFacts(error=error), asked.stderr or "no message"

    facts, said = ask(os.environ)
    if not said:
        return facts
    return replace(facts, blame=find_blame(said, lambda environment: not ask(environment)[1]))


def parse_facts(text: str) -> TorchFacts:
    """Facts from the JSON that `print_facts` writes."""
    fields: dict[str, Any] = json.loads(text)
    fields["arch_list"] = tuple(fields["arch_list"])
    fields["device_names"] = tuple(fields["device_names"])
    for name in ("uuids", "unified", "total_bytes", "archs", "mps"):
        fields[name] = tuple(fields.get(name, ()))
    fields["capabilities"] = tuple((int(major), int(minor)) for major, minor in fields["capabilities"])
    fields["blame"] = Blame(**fields["blame"]) if fields.get("blame") else None
    return TorchFacts(**fields)


def measure_torch_facts() -> TorchFacts:
    """Ask torch in this process. It starts the GPU where there is one."""
    try:
        import torch
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        # a library of the wheel that does not load, or a variable that torch does not accept and lists the values of
        sys.stderr.write(f"{error}\n")
        return TorchFacts(error=f"torch cannot be imported: {last_words(f'{type(error).__name__}: {error}')}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = accelerator()
    build: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "hip_version": getattr(torch.version, "hip", None),
        "xpu_version": getattr(torch.version, "xpu", None),
        "has_mps": torch.backends.mps.is_built(),
        "arch_list": tuple(torch.cuda.get_arch_list()),
        "available": found is not None,
    }
    if found is None:
        return TorchFacts(**build, warning="; ".join(_first_line(str(each.message)) for each in caught) or None)
    return TorchFacts(**build, **_measure_devices(found))


def _measure_devices(device: Backend) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"kind": device.kind, "device_count": getattr(torch, device.kind).device_count()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on architectures: `diagnosis` says it better
            found |= device.facts()
            (torch.ones(8, device=device.kind) + 1).sum().item()
    except (RuntimeError, AssertionError, ValueError) as error:  # ValueError: settings that torch does not take
        found["trial_error"] = _first_line(str(error))
    return found


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def print_facts() -> None:
    """Write the facts as one marked line of JSON, apart from whatever torch's libraries print."""
    sys.stdout.write(f"\n{_MARK}{json.dumps(asdict(measure_torch_facts()))}\n")
    sys.stdout.flush()
