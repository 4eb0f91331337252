"""Changing inputs so that they stay what they are, nearly: text by its words, Parquet by its columns, bundles by their files."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.bundles.bundle import MANIFEST, Manifest, write_archive
from bench.store.parts import rows_hash

Mutator = Callable[[bytes, random.Random], bytes]
MAX_INPUT_BYTES = 1 << 18

NUMBERS = [
    0,
    1,
    -1,
    2,
    64,
    255,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 53) + 1,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 64,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
]
TEXTS = [
    "",
    " ",
    "x",
    "ok",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "con",
    "a" * 300,
    "a" * 70_000,
    "\x00",
    "\n",
    "\x1b[31m",
    "\u202e",
    "\ud7ff",
    "<script>",
    "__import__('os')",
    "{0.__class__}",
    "%s%n",
    "1e999",
    "nan",
    "null",
    "cpu",
    "h200",
    "cuda:0",
    "mlp:hidden=[1]",
    "folder:/",
    "mlp:" + "[" * 500,
    "resnet18",
    "adam:foreach=false",
    "bf16",
    "2.6",
    "9" * 5000,
]
WORDS = [
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b"=",
    b".",
    b",",
    b'"',
    b'"""',
    b"'",
    b"#",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"inf",
    b"nan",
    b"true",
    b"1e999",
    b"0x_",
    b"1979-05-27T07:32:00",
    b"\\u0000",
    b"\\uD800",
    b"9" * 5000,
    b"[" * 3000,
    b"{a=" * 500,
    b"pow2",
    b"from",
    b"to",
    b"step",
    b"[include]",
    b"[[include]]",
    b"[[exclude]]",
    b"*",
    b"?",
    b"[!",
    b"grid.",
    b"../",
    b"\xef\xbb\xbf",
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, move and overwrite."""
    out = bytearray(data or b"\x00")
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at, size = rng.randrange(len(out) + 1), rng.choice([1, 1, 2, 4, 8, 64])
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = out[at : at + size]
            case 3:
                out[at : at + size] = rng.randbytes(size)
            case 4:
                out[at:at] = rng.choice(WORDS)
            case 5:
                out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            case _:
                del out[rng.choice([at, len(out) - 1 - at // 8 if out else 0]) :]
        out = out or bytearray(b"\x00")
    return bytes(out[:MAX_INPUT_BYTES])


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """By lines and words, with the words of configurations."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 1:
            del lines[at]
        case 2:
            key, equals, _ = lines[at].partition(b"=")
            lines[at] = key + equals + _text_of(rng)
        case 3:
            cells = lines[at].split(b",")
            cells[rng.randrange(len(cells))] = _text_of(rng)
            lines[at] = b",".join(cells)
        case 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 5:
            lines[at] = lines[at].replace(b"_", b"") if rng.random() < 0.5 else b"x" + lines[at]
        case _:
            return mutate_bytes(data, rng)
    return b"\n".join(lines)[:MAX_INPUT_BYTES]


def _text_of(rng: random.Random) -> bytes:
    value = rng.choice([*NUMBERS, *TEXTS, True, None, *WORDS])
    if isinstance(value, bytes):
        return value
    if isinstance(value, int) and value > 1 << 70:
        return b"9" * 401
    text = json.dumps(value, ensure_ascii=False) if rng.random() < 0.7 else str(value)
    return (f"[{text}]" if rng.random() < 0.2 else text).encode(errors="replace")


def mutate_json(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """One place of a JSON value replaced, dropped or doubled."""
    if isinstance(value, dict) and value and depth < 6 and rng.random() < 0.85:
        key = rng.choice(list(value))
        out = dict(value)
        if rng.random() < 0.15:
            del out[key]
        else:
            out[key] = mutate_json(value[key], rng, depth + 1)
        return out
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(value[at], rng, depth + 1), *value[at + rng.randrange(2) :]]
    nested: Any = 1
    for _ in range(rng.choice([1, 5, 2000])):
        nested = [nested]
    return rng.choice([*NUMBERS[:12], *NUMBERS[14:], *TEXTS, None, True, [], {}, nested, {"a": {"b": []}}, [[1], "x"]])


_TYPES = [
    pa.null(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.int64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.binary(3),
    pa.date32(),
    pa.timestamp("ns", "UTC"),
    pa.time64("us"),
    pa.duration("s"),
    pa.decimal128(38, 9),
    pa.list_(pa.float64()),
    pa.list_(pa.list_(pa.int64())),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int32(), pa.string()),
]


def _odd_value(kind: pa.DataType, rng: random.Random) -> Any:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return rng.choice(TEXTS)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return rng.choice(NUMBERS)
    if pa.types.is_list(kind):
        return [_odd_value(kind.value_type, rng) for _ in range(rng.choice([0, 1, 3, 1000]))]
    return rng.choice([None, True, b"abc", {"a": 1}, [("a", 1)], decimal.Decimal(1), datetime.date(1, 1, 1)])


def _mutate_column(table: pa.Table, rng: random.Random) -> pa.Table:
    names = table.column_names
    if not names:
        return table.append_column("case_key", pa.array(["x"] * table.num_rows))
    at = rng.randrange(len(names))
    field, column = table.schema.field(at), table.column(at)
    match rng.randrange(9):
        case 0:
            return table.remove_column(at)
        case 1:
            return table.append_column(
                rng.choice([field.name, "planned", "schema_version", "\x1b[1m", "a.b", "x"]), column
            )
        case 2:
            return table.set_column(at, rng.choice([*names, "", "x" * 300]), column)
        case 3:
            kind = rng.choice(_TYPES)
            with contextlib.suppress(pa.ArrowException, ValueError, TypeError):
                return table.set_column(at, field.name, column.cast(kind))
            return table.set_column(at, field.name, pa.nulls(table.num_rows, kind))
        case 4:
            return table.set_column(at, field.name, pa.nulls(table.num_rows, field.type))
        case 5 | 6:
            values = column.to_pylist()
            if values:
                values[rng.randrange(len(values))] = _odd_value(field.type, rng)
            return table.set_column(at, field.name, pa.array(values, field.type))
        case 7:
            return table.slice(0, rng.choice([0, 1])) if rng.random() < 0.5 else pa.concat_tables([table, table])
        case _:
            return table.select(rng.sample(names, len(names))) if len(set(names)) == len(names) else table


def mutate_parquet(data: bytes, rng: random.Random) -> bytes:
    """A part or a recording: one column, value or note changed, the hash mended mostly; or bytes."""
    if rng.random() < 0.25:
        return _mutate_footer(data, rng)
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = dict(table.schema.metadata or {})
        if rng.random() < 0.65:
            for _ in range(rng.choice([1, 1, 2, 3])):
                table = _mutate_column(table, rng)
        else:
            metadata = _mutate_metadata(metadata, rng)
        if b"bench.sha256" in metadata and rng.random() < 0.9:
            metadata[b"bench.sha256"] = _hash_of(table, metadata)
        out = io.BytesIO()
        with pq.ParquetWriter(
            out,
            table.schema,
            compression=rng.choice(["none", "zstd", "snappy", "gzip"]),
            use_dictionary=rng.random() < 0.5,
            store_schema=rng.random() < 0.3,
            data_page_version=rng.choice(["1.0", "2.0"]),
            write_page_checksum=rng.random() < 0.5,
        ) as writer:
            writer.write_table(table, row_group_size=rng.choice([1, 7, 1 << 20]))
            writer.add_key_value_metadata(metadata)
        return out.getvalue()[: MAX_INPUT_BYTES * 4]
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, KeyError, RecursionError):
        return mutate_bytes(data, rng)


def _hash_of(table: pa.Table, metadata: dict[bytes, bytes]) -> bytes:
    if b"bench.recording" not in metadata:
        return rows_hash(table.to_pylist()).encode()
    digest = hashlib.sha256(metadata[b"bench.recording"])
    for name, kind in (("action", pa.uint8()), ("address", pa.int64()), ("bytes", pa.int64())):
        digest.update(pa.array(table.column(name).to_pylist(), kind).buffers()[1] or b"")
    return digest.hexdigest().encode()


def _mutate_metadata(metadata: dict[bytes, bytes], rng: random.Random) -> dict[bytes, bytes]:
    key = rng.choice(list(metadata) or [b"bench.notes"])
    if rng.random() < 0.1:
        return {name: value for name, value in metadata.items() if name != key}
    if key in (b"bench.notes", b"bench.recording") and rng.random() < 0.85:
        value = mutate_json(json.loads(metadata[key]), rng)
        return {**metadata, key: json.dumps(value, default=str)[:MAX_INPUT_BYTES].encode(errors="replace")}
    odd = [
        b"",
        b"-1",
        b"1",
        b"2",
        b"9" * 30,
        b"9" * 5000,
        b"1.0",
        b"\xff",
        b"plan",
        b"run",
        b"estimates",
        b"{}",
        b"[]",
        b"null",
    ]
    return {**metadata, key: rng.choice([*odd, mutate_bytes(metadata.get(key, b"x"), rng)])}


def _mutate_footer(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the Thrift footer, which says how everything else is to be read, or of a page."""
    if len(data) < 16 or rng.random() < 0.4:
        return mutate_bytes(data, rng)
    size = struct.unpack("<I", data[-8:-4])[0]
    start = max(len(data) - 8 - size, 4)
    footer = bytearray(data[start:-8])
    for _ in range(rng.choice([1, 1, 2, 5])):
        if footer:
            footer[rng.randrange(len(footer))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return data[:start] + bytes(footer) + data[-8:]


def pack(contents: dict[str, bytes]) -> bytes:
    """An archive as bench bundle writes it, whatever the names are."""
    out = io.BytesIO()
    write_archive(out, {name: (len(text), partial(io.BytesIO, text)) for name, text in contents.items()})
    return out.getvalue()


def mutate_bundle(data: bytes, rng: random.Random) -> bytes:
    """Files, names or manifest of an archive changed, mostly so that the sums agree again; or bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            contents = {info.filename: opened.read(info)[:MAX_INPUT_BYTES] for info in opened.infolist()[:50]}
        name = rng.choice(sorted(contents))
        match rng.randrange(6):
            case 0:
                contents[_odd_name(name, rng)] = contents[name]
            case 1:
                contents[_odd_name(name, rng)] = contents.pop(name)
            case 2 | 3:
                change = mutate_parquet if name.endswith(".parquet") else mutate_text
                contents[name] = change(contents[name], rng)
            case 4:
                del contents[name]
            case _:
                return _repacked(contents, rng)
        if contents and rng.random() < 0.85:
            contents = _with_manifest(contents, rng)
        return pack(contents)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        struct.error,
        OverflowError,
        zlib.error,
        RuntimeError,
        RecursionError,
    ):
        return mutate_bytes(data, rng)


def _odd_name(name: str, rng: random.Random) -> str:
    top, _, rest = name.partition("/")
    odd = [
        f"../{rest}",
        f"/{rest}",
        f"{top}/../{rest}",
        f"{top}\\{rest}",
        f"{top}/con.txt",
        f"{top}/{rest.upper()}",
        f"{top}/{rest}/x",
        f"{top}/.hidden",
        f"{top}/" + "a/" * 10 + "x",
        f"{top}/{'x' * 250}",
        f"{top}/runs/",
        "other/x",
        "x",
        f"{top}/data/runs/p.pkl",
        f"{top}/sitecustomize.py",
        f"{top}/data/plan-x.parquet",
        f"{top}/data/plan-0009.parquet",
    ]
    return rng.choice(odd)


def _with_manifest(contents: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    top = next(iter(sorted(contents))).partition("/")[0]
    own = f"{top}/{MANIFEST}"
    sums = {
        name.removeprefix(f"{top}/"): (len(text), hashlib.sha256(text).hexdigest())
        for name, text in contents.items()
        if name != own
    }
    text = Manifest("mine", "0", sums).text
    if rng.random() < 0.2:
        value = mutate_json(json.loads(text), rng)
        text = (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode(errors="replace")
    return {**contents, own: text}


def _repacked(contents: dict[str, bytes], rng: random.Random) -> bytes:
    """As other programs pack: compressed, with links, comments and extra fields."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])) as packed:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = rng.choice([0o100644, 0o120777, 0o040755, 0o020666]) << 16
            info.extra = rng.choice([b"", b"\x01\x00\x08\x00" + b"\xff" * 8])
            packed.writestr(info, content)
        packed.comment = rng.choice([b"", b"PK\5\6" + bytes(18)])
    return out.getvalue()
