"""What `bench noise` found on a machine and device, kept beside this account's calibrations.

It holds while the environment is the one it was measured in: its key is stored with it, and the fields that the key is
made of, so that whoever reads it can say what has changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.devices.calibration import slug, write_kept
from bench.folders import calibrations_folder
from bench.records import Environment
from bench.records.fields import entries

_ENDING = ".noise.json"


UNEVEN = 2.0
"""Where the noisiest case spreads so much more than the quietest, one figure for all says too little."""

_EXTREMES = ("quietest_frac", "noisiest_frac")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNoise:
    """The noise of one device on one machine.

    Attributes:
        device: Its name.
        environment_key: Of the runs.
        environment: The fields of that key.
        measured_unix_s: When the last run began.
        runs: How many there were.
        cases: Of how many cases.
        spread_frac: Between processes of a case, as a fraction of the rate.
        quietest_frac: The same in the case in which it is least; None in a file of an earlier version.
        noisiest_frac: The same in the case in which it is most.
        visible: Pairs: processes per side, and the difference of throughput that a comparison of one case then finds in
            4 of 5 tries, as a fraction.
        disturbances: Codes of what was found to disturb it, the worst first.
    """

    device: str
    environment_key: str
    environment: Mapping[str, Any]
    measured_unix_s: float
    runs: int
    cases: int
    spread_frac: float
    visible: Sequence[tuple[int, float]]
    disturbances: Sequence[str] = ()
    quietest_frac: float | None = None
    noisiest_frac: float | None = None

    @classmethod
    def read(cls, found: object) -> KeptNoise | None:
        """From its JSON object, which others may have written; None where it is not one."""
        try:
            values: dict[str, Any] = dict(found)  # type: ignore[call-overload]
            kept = cls(
                device=str(values["device"]),
                environment_key=str(values["environment_key"]),
                environment=dict(values.get("environment", {})),
                measured_unix_s=float(values["measured_unix_s"]),
                runs=int(values["runs"]),
                cases=int(values["cases"]),
                spread_frac=float(values["spread_frac"]),
                visible=tuple((int(n), float(frac)) for n, frac in values["visible"]),
                disturbances=tuple(map(str, values.get("disturbances", ()))),
                **{name: None if values.get(name) is None else float(values[name]) for name in _EXTREMES},
            )
            kept.day  # noqa: B018 - raises where the time is none
        except (TypeError, ValueError, KeyError, OverflowError, OSError):
            return None
        extremes = [kept.quietest_frac or 0.0, kept.noisiest_frac or 0.0]
        numbers = (kept.spread_frac, *extremes, *(frac for _, frac in kept.visible))
        return kept if all(math.isfinite(number) and number >= 0 for number in numbers) and kept.visible else None

    @property
    def day(self) -> str:
        """When it was measured, in UTC: `2026-11-28`."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.measured_unix_s))

    def changes(self, environment: Environment) -> list[str]:
        """Why it is out of date for an environment, `torch_version 2.13 -> 2.14` each; empty if it is not."""
        if self.environment_key == environment.key:
            return []
        return environment.changes_since(self.environment) or ["the environment's key"]

    @property
    def sentence(self) -> str:
        """The differences that can be seen, without a full stop."""
        each = [f"{f'{frac * 100:.1f}' if frac <= 1 else 'over 100'} % with {n}" for n, frac in self.visible]
        listed = f"{', '.join(each[:-1])} and {each[-1]}" if len(each) > 1 else each[0]
        low, high = self.quietest_frac, self.noisiest_frac
        extremes = ""
        if low is not None and high is not None and high > UNEVEN * low:
            extremes = f"; by case, processes spread by {low * 100:.1f} to {high * 100:.1f} %"
        return (
            f"On this machine, comparing one case finds a difference in throughput of {listed} processes per side in 4 "
            f"of 5 tries (bench noise of {self.day}, {self.runs} runs{extremes})"
        )

    @property
    def note(self) -> dict[str, Any]:
        """What a plan notes of it; the environment stands in the rows already."""
        return {key: value for key, value in asdict(self).items() if key != "environment"}


def keep_noise(noise: KeptNoise, environment: Environment) -> Path | None:
    """Write it to this account's folder; returns the file, or None where the folder is switched off.

    Raises:
        DeviceError: The file cannot be written.
    """
    path = _path(environment)
    return None if path is None else write_kept(path, json.dumps(asdict(noise), indent=1) + "\n")


def find_noise(environment: Environment) -> KeptNoise | None:
    """What this account kept of a device, out of date or not; None if it kept nothing that can be read."""
    path = _path(environment)
    try:
        return None if path is None else KeptNoise.read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def environment_fields(environment: Environment) -> dict[str, Any]:
    """The fields of the environment's key, by name."""
    return {name: getattr(environment, name) for name, entry in entries(Environment).items() if entry.key}


def _path(environment: Environment) -> Path | None:
    """The file of a device: of a GPU by its UUID's hash, of a CPU by the host's."""
    folder = calibrations_folder()
    if folder is None:
        return None
    which = (environment.gpu_uuid_hash or environment.host_hash or "unknown")[:8]
    name = environment.gpu_name or environment.cpu_model or environment.device
    return folder / f"{slug(name)}-{which}{_ENDING}"
