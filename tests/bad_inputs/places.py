"""The folder in which the command lines run, and the files and folders that are wrong: by name, how one is made and asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.bundles import write_bundle
from tests.fuzz.mutators import pack
from tests.fuzz.targets import TARGETS
from tests.results import make_cases, make_results

GOOD = 'name = "n"\n[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = 64\n'
CSV = "model,batch_size,peak_allocated_bytes,device\n"
SCHEDTUNE = "model,batch_size,peak_mem_mib,gpu,image_size\n"
XMEM = "family,model,optimizer,batch_size,input,zero_grad_mode,gpu,gpu_total_bytes,ground_nvml_bytes,real_oom\n"
DEVICE = 'gpu_name = "Mine"\nkind = "cuda"\n'
SOURCES = "[sources]\n"


def make_places() -> None:
    """Good and bad things side by side in the working directory."""
    cases = make_cases(("mnist",), ("mlp",), ("sgd",), (16, 64))
    make_results(Path("results/data"), cases, repeats=3, trace=True)
    make_results(Path("other/data"), cases, repeats=3, trace=True, seed=2)
    Path("folder").mkdir()
    Path("good.toml").write_text(GOOD)
    Path("faulty_device.toml").write_text('gpu_name = ""\nkind = "gpu"\nmemory = 3\n')
    Path("text.txt").write_text("hello, this is text and nothing else\n" * 3)
    Path("good.csv").write_text(f"{CSV}mlp,16,5000000,h200\n")
    write_bundle(Path("good.zip"), "mine", {"report.md": b"# a report\n"})


Place = tuple[Callable[[], object], list[str]]


def _csv(text: str | bytes) -> Place:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda: Path("in.csv").write_bytes(data), ["validate", "in.csv"]


def _device(text: str) -> Place:
    return lambda: Path("in.toml").write_text(text), ["estimate", "--model", "mlp", "--device", "in.toml"]


def _zip(make: Callable[[], bytes], *command: str) -> Place:
    return lambda: Path("in.zip").write_bytes(make()), [*(command or ("report", "in.zip", "--out", "out"))]


def _part(pattern: str, change: Callable[[Path], object], *command: str) -> Place:
    """A copy of good results with one part changed."""

    def make() -> None:
        shutil.copytree("results", "in")
        change(min(Path("in/data").glob(pattern)))

    return make, [*(command or ("report", "in", "--out", "out"))]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _version(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"bench.schema_version": b"7"}), path)


def _value(path: Path) -> None:
    table = pq.read_table(path)
    at = table.column_names.index("batch_size")
    pq.write_table(table.set_column(at, "batch_size", pa.array([32] * table.num_rows)), path)


def _archive() -> bytes:
    return Path("good.zip").read_bytes()


def _recording(change: Callable[[Path], object]) -> Place:
    def make() -> None:
        Path("seeds").mkdir()
        Path("in.parquet").write_bytes(TARGETS["recording"].seeds(Path("seeds"))[0])
        change(Path("in.parquet"))

    return make, ["estimate", "--explain-difference", "in.parquet"]


def _facts(**changed: object) -> Callable[[Path], object]:
    import hashlib
    import json

    def change(path: Path) -> None:
        table = pq.read_table(path)
        facts = json.dumps({**json.loads(table.schema.metadata[b"bench.recording"]), **changed}).encode()
        digest = hashlib.sha256(facts)
        for name in ("action", "address", "bytes"):
            digest.update(table.column(name).combine_chunks().buffers()[1])
        pq.write_table(
            table.replace_schema_metadata({b"bench.recording": facts, b"bench.sha256": digest.hexdigest().encode()}),
            path,
        )

    return change


PLACES: dict[str, Place] = {
    "csv: empty": _csv(""),
    "csv: only a header": _csv(CSV),
    "csv: no UTF-8": _csv(b"model\xff\n"),
    "csv: other columns": _csv("network,batch,memory\nmlp,16,3\n"),
    "csv: a column misspelt": _csv("model,batchsize,peak_allocated_bytes\nmlp,16,3\n"),
    "csv: a column twice": _csv("model,model,batch_size,peak_allocated_bytes\nmlp,mlp,16,3\n"),
    "csv: more cells than columns": _csv(f"{CSV}mlp,16,3,h200,5,6\n"),
    "csv: an open quote": _csv(f'{CSV}"mlp,16,3,h200\n'),
    "csv: unknown model": _csv(f"{CSV}resnte18,16,3000,h200\n"),
    "csv: unknown device": _csv(f"{CSV}mlp,16,3000,h2000\n"),
    "csv: no device": _csv(f"{CSV}mlp,16,3000,\n"),
    "csv: nothing measured": _csv(f"{CSV}mlp,16,,h200\n"),
    "csv: batch of nothing": _csv(f"{CSV}mlp,0,3000,h200\n"),
    "csv: batch of words": _csv(f"{CSV}mlp,many,3000,h200\n"),
    "csv: endless memory": _csv(f"{CSV}mlp,16,inf,h200\n"),
    "csv: a fraction of a byte": _csv(f"{CSV}mlp,16,0.5,h200\n"),
    "csv: no model": _csv(f"{CSV},16,3000,h200\n"),
    "csv: a model too long": _csv(f"{CSV}{'m' * 300},16,3000,h200\n"),
    "csv: thirty faults": _csv(CSV + "mlp,0,3000,h200\n" * 30),
    "csv: unknown precision": _csv("model,batch_size,peak_allocated_bytes,device,precision\nmlp,16,3000,h200,int8\n"),
    "csv: no version": _csv("model,batch_size,peak_allocated_bytes,device,torch_version\nmlp,16,3000,h200,new\n"),
    "csv: old torch in bf16": _csv(
        "model,batch_size,peak_allocated_bytes,device,precision,torch_version\nmlp,16,3000,h200,bf16,2.6\n"
    ),
    "csv: no number of an image size": _csv(
        "model,batch_size,peak_allocated_bytes,device,image_size\nmlp,16,3000,h200,big\n"
    ),
    "csv: SchedTune, another image size": _csv(f"{SCHEDTUNE}resnet18,32,4000,Tesla V100 16/32GB,96x96\n"),
    "csv: SchedTune, no memory": _csv(f"{SCHEDTUNE}resnet18,32,,Tesla V100 16/32GB,224x224\n"),
    "csv: xMem, no shape": _csv(f"{XMEM}cnn,VGG16,Adam,100,86,0,rtx3060,12000000000,4000000000,False\n"),
    "csv: xMem, no case of ours": _csv(f"{XMEM}llm,gpt2,Adam,100,86,0,rtx3060,12000000000,4000000000,False\n"),
    "csv: a colour": _csv(f"{CSV}\x1b[31mred,16,3000,h200\n"),
    "device: empty": _device(""),
    "device: not TOML": _device("gpu_name: Mine\n"),
    "device: another kind": _device(f'gpu_name = "Mine"\nkind = "tpu"\n{SOURCES}'),
    "device: a misspelt key": _device(f"{DEVICE}memory_byte = 3\n{SOURCES}"),
    "device: no source": _device(f"{DEVICE}memory_bytes = 3\n"),
    "device: a source of nothing": _device(f'{DEVICE}{SOURCES}memory_bytes = "the box"\n'),
    "device: an empty source": _device(f'{DEVICE}memory_bytes = 3\n{SOURCES}memory_bytes = ""\n'),
    "device: negative memory": _device(f'{DEVICE}memory_bytes = -3\n{SOURCES}memory_bytes = "the box"\n'),
    "device: memory in words": _device(f'{DEVICE}memory_bytes = "8 GiB"\n{SOURCES}memory_bytes = "the box"\n'),
    "device: endless bandwidth": _device(
        f'{DEVICE}memory_bandwidth_bytes_per_s = inf\n{SOURCES}memory_bandwidth_bytes_per_s = "the box"\n'
    ),
    "device: one number of a capability": _device(
        f'{DEVICE}compute_capability = [9]\n{SOURCES}compute_capability = "the box"\n'
    ),
    "device: sources is a number": _device(f"{DEVICE}sources = 3\n"),
    "device: half an interval": _device(f'{DEVICE}context_low_bytes = 3\n{SOURCES}context_low_bytes = "the box"\n'),
    "device: a nest": _device("x = " + "[" * 5000),
    "device: 5,000 digits": _device("memory_bytes = " + "9" * 5000),
    "bundle: cut short": _zip(lambda: _archive()[:-30]),
    "bundle: bytes behind it": _zip(lambda: _archive() + b"x"),
    "bundle: a changed byte": _zip(lambda: _archive().replace(b"# a report", b"# A report")),
    "bundle: a changed byte, verified": _zip(
        lambda: _archive().replace(b"# a report", b"# A report"), "verify", "in.zip"
    ),
    "bundle: nothing in it": _zip(lambda: pack({})),
    "bundle: without a manifest": _zip(lambda: pack({"mine/report.md": b"x"})),
    "bundle: two folders": _zip(lambda: pack({"mine/manifest.json": b"{}", "other/x": b"x"})),
    "bundle: a manifest that is none": _zip(lambda: pack({"mine/manifest.json": b"{}"})),
    "bundle: a newer manifest": _zip(lambda: pack({"mine/manifest.json": b'{"format": 9}'})),
    "bundle: an absolute name": _zip(lambda: pack({"/etc/passwd": b"x"})),
    "bundle: a name that climbs": _zip(lambda: pack({"mine/../../x": b"x"})),
    "bundle: a name with a backslash": _zip(lambda: pack({"mine\\x": b"x"})),
    "bundle: a device of Windows": _zip(lambda: pack({"mine/con.txt": b"x"})),
    "bundle: empty": _zip(lambda: b""),
    "bundle: without results": _zip(_archive),
    "results: a plan cut short": _part("plan-*", _truncate),
    "results: a newer plan": _part("plan-*", _version),
    "results: a newer run": _part("runs/*.parquet", _version, "check", "in"),
    "results: a newer run, compared": _part("runs/*.parquet", _version, "compare", "in", "other"),
    "results: a newer run, merged": _part("runs/*.parquet", _version, "merge", "both", "in", "other"),
    "results: a changed run, merged": _part("runs/*.parquet", _value, "merge", "both", "in", "other"),
    "results: a run cut short, merged": _part("runs/*.parquet", _truncate, "merge", "both", "in", "other"),
    "results: a run that is a pipe, merged": _part(
        "runs/*.parquet", lambda path: (path.unlink(), os.mkfifo(path)), "merge", "both", "in", "other"
    ),
    "results: a plan that is text": _part("plan-*", lambda path: path.write_text("hello")),
    "results: a plan that is a folder": _part("plan-*", lambda path: (path.unlink(), path.mkdir())),
    "results: a link to nowhere": _part("plan-*", lambda path: (path.unlink(), path.symlink_to("nowhere"))),
    "recording: cut short": _recording(_truncate),
    "recording: empty": _recording(lambda path: path.write_bytes(b"")),
    "recording: a newer one": _recording(_facts(format=9)),
    "recording: of another case": _recording(_facts(case_key="0" * 16)),
    "recording: of no status": _recording(_facts(status="great")),
    "recording: of no steps": _recording(_facts(steps=-1)),
    "recording: of an unknown model": _recording(
        _facts(
            axes={
                "dataset": "mnist",
                "model": "mpl",
                "optimizer": "adam",
                "batch_size": 64,
                "precision": "float32",
                "memory_format": "contiguous",
                "input": "synthetic",
                "image_size": 28,
            }
        )
    ),
    "recording: of no axes": _recording(_facts(axes={})),
}
