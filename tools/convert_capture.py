"""Turn a folder of `gpu_capture.py` into recordings: `python tools/convert_capture.py FOLDER [--out tests/recordings]`.

Reads FOLDER/device.json, cases.jsonl and events.npz and writes one Parquet file a case to OUT/<gpu>/, in the format of
`bench record` with `loop = "gpu_capture"`: that script has a training loop of its own, which is that of the oracle in
tests/oracle/step.py. Cases without a history are left out with a word. Needs no torch and no GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import catalog
from bench.errors import BenchError
from bench.recordings import OOM, OTHER, Facts, GpuFacts, Recording, write_recording
from bench.recordings.facts import FORMAT
from bench.records import Case, stable_hash

DATASETS = {(1, 28, 28): "mnist", (3, 32, 32): "cifar10", (3, 224, 224): "imagenet"}
SEED = 42  # of the script
MAX_TOTAL_BYTES = 5 << 20
VARIABLES = ("PYTORCH_", "CUBLAS", "TORCH_CUBLAS", "CUDA_MODULE", "NVIDIA_TF32")


def case_of(record: dict[str, Any]) -> Case:
    """The case of a line of cases.jsonl. Raises BenchError where the project has no such case."""
    image = tuple(record["image"])
    if image not in DATASETS:
        raise BenchError(f"no data set has images of shape {image}")
    settings = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(record["settings"].items()))
    name = record["optimizer"]
    optimizer = "sgd_momentum" if (name, settings) == ("sgd", "momentum=0.9") else f"{name}:{settings}".rstrip(":")
    return Case(
        catalog.parse_choice("dataset", DATASETS[image]),
        catalog.parse_choice("model", record["model"]),
        catalog.parse_choice("optimizer", optimizer),
        record["batch_size"],
        record["precision"],
        record["memory_format"],
        "synthetic",
        image[1],
    )


def gpu_of(device: dict[str, Any]) -> GpuFacts:
    """The GPU of device.json."""
    properties = device["properties"]
    fields = [field.strip() for field in (device.get("smi") or "").split(",")]
    return GpuFacts(
        name=properties["name"],
        multiprocessors=properties["multi_processor_count"],
        threads_per_multiprocessor=properties.get("max_threads_per_multi_processor"),
        compute_capability=[properties["major"], properties["minor"]],
        total_bytes=properties["total_memory"],
        driver_version=fields[1] if len(fields) > 1 else None,
    )


def facts_of(record: dict[str, Any], device: dict[str, Any], case: Case) -> Facts:
    """The facts of one case, as far as the script notes them."""
    stats = record["memory_stats"]
    versions = {"torch": device["torch"], "cuda": device.get("cuda"), "cudnn": _dotted(device.get("cudnn"))}
    switches = {**device.get("flags", {}), **{f"{name}_sdp": value for name, value in device.get("sdp", {}).items()}}
    free, free_after = record.get("free_total_after_context"), record.get("free_total_after_steps")
    context = None
    if free_after and record["status"] == "ok":
        context = max(free_after[1] - free_after[0] - stats[-1]["reserved_bytes.all.current"], 0)
    return Facts(
        format=FORMAT,
        loop="gpu_capture",
        recording_key=stable_hash(["gpu_capture", case.key, device]),
        case_key=case.key,
        axes=case.axes,
        status=record["status"],
        reason=record.get("message"),
        steps=max(len(stats) - 1, 0),
        memory_stats=stats,
        gpu=gpu_of(device),
        versions={name: None if value is None else str(value) for name, value in versions.items()},
        switches=switches,
        variables={key: value for key, value in device.get("environment", {}).items() if key.startswith(VARIABLES)},
        memory={
            "free_after_context": free and free[0],
            "free_after_steps": free_after and free_after[0],
            "context": context,
        },
        seed=SEED,
    )


def _dotted(number: int | None) -> str | None:
    """`9.26.0` for 92600 (cudnn_version.h)."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}" if number and number >= 90000 else None


def convert_case(record: dict[str, Any], device: dict[str, Any], arrays: Any) -> Recording:
    """A line of cases.jsonl with its events.

    The script counts every action that it does not know as 9; the last with a size, where memory ran out, is the
    request that failed. It does not keep torch's figures at that moment.

    Raises:
        BenchError: No such case here, or it has no history.
    """
    prefix = str(record.get("case"))
    if record["status"] not in ("ok", "oom") or f"{prefix}_action" not in arrays:
        raise BenchError(f"ended {record['status']}, without a history")
    actions, addresses, sizes = (arrays[f"{prefix}_{name}"].tolist() for name in ("action", "address", "bytes"))
    if record["status"] == "oom":
        failed = [index for index, action in enumerate(actions) if action == OTHER and sizes[index] > 0]
        if failed:
            actions[failed[-1]] = OOM
    return Recording(facts_of(record, device, case_of(record)), actions, addresses, sizes, [])


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("tests/recordings"))
def main(folder: Path, out: Path) -> None:
    """Convert a folder; see the module."""
    try:
        device = json.loads((folder / "device.json").read_text(encoding="utf-8"))
        lines = (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines()
        arrays = np.load(folder / "events.npz", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{folder}: not what gpu_capture.py writes ({error})") from error
    target = out / _slug(device["properties"]["name"])
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for line in lines:
        record = json.loads(line)
        try:
            recording = convert_case(record, device, arrays)
        except BenchError as error:
            click.echo(f"case {record.get('case')} left out: {error}", err=True)
            continue
        path = target / f"{_slug(str(case_of(record)))}-{recording.facts.recording_key}.parquet"
        path.unlink(missing_ok=True)
        write_recording(recording, path)
        total += path.stat().st_size
    click.echo(f"{target}: {total:,} B")
    if total > MAX_TOTAL_BYTES:
        raise click.ClickException(
            f"more than {MAX_TOTAL_BYTES >> 20} MiB: leave some cases out before committing them"
        )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80]


if __name__ == "__main__":
    main()
