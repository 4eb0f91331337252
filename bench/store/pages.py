"""The unpacked size of a Parquet file, read from the headers of its pages without unpacking any.

Readers do not enforce the sizes in a file's footer: a page of 100 KiB may unpack to 2 GiB, and a few bytes of run
lengths to 10^9 values of a list. (And reading the footer's entry of a column with pyarrow ends the process if that
entry is damaged.) So the headers of the pages, which readers do follow, are read here.

Footer and headers are structs in Thrift's compact protocol. (Sources: apache/parquet-format, parquet.thrift;
apache/thrift, doc/specs/thrift-compact-protocol.md.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any

_MAX_DEPTH = 10
_WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}  # bytes of true, false, a byte and a double
_SCHEMA, _GROUPS, _CHUNKS, _META = 2, 4, 1, 3  # of FileMetaData, RowGroup and ColumnChunk
_CODEC, _COMPRESSED, _DATA_AT, _DICTIONARY_AT = 4, 7, 9, 11  # of ColumnMetaData
_PAGE_UNPACKED, _PAGE_PACKED, _PAGE_DATA, _PAGE_DATA_2 = 2, 3, 5, 8  # of PageHeader

_SCHEMAS: deque[bytes] = deque(maxlen=8)
_KEPT_BYTES = 1 << 16  # of one: the list of a part's columns takes some KiB, a hostile one may take megabytes


def unpacked(data: bytes, nested: Container[int]) -> tuple[int, int]:
    """The total size of the pages of a file.

    Only pages that can unpack to more than their bytes are counted: compressed ones, and those of columns of lists.

    Args:
        data: The file.
        nested: The numbers of the columns of lists.

    Returns:
        The bytes of all pages uncompressed, and the values in columns of lists.

    Raises:
        ValueError: The file is damaged.
    """
    size = values = 0
    try:
        end = len(data) - 8
        footer, _ = _struct(data, end - int.from_bytes(data[end : end + 4], "little"))
        for group in footer[_GROUPS]:
            for number, chunk in enumerate(group[_CHUNKS]):
                meta = chunk[_META]
                if meta[_CODEC] or number in nested:
                    pages = _pages(data, meta)
                    size, values = size + pages[0], values + (pages[1] if number in nested else 0)
                else:
                    size += meta[_COMPRESSED]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("its footer, or the header of a page, is damaged") from error
    return size, values


def _pages(data: bytes, meta: dict[int, Any]) -> tuple[int, int]:
    """Bytes uncompressed, and values, of the pages of one column in one group of rows."""
    at = min(meta[_DATA_AT], meta.get(_DICTIONARY_AT) or meta[_DATA_AT])
    end = at + meta[_COMPRESSED]
    if not 0 < at <= end <= len(data):
        raise ValueError("a column lies outside the file")
    size = values = 0
    while at < end:
        header, at = _struct(data, at)
        packed, whole = header[_PAGE_PACKED], header[_PAGE_UNPACKED]
        count = (header.get(_PAGE_DATA) or header.get(_PAGE_DATA_2) or {1: 0})[1]
        if min(packed, whole, count) < 0:
            raise ValueError("a page has a negative size")
        size, values, at = size + whole, values + count, at + packed
    return size, values


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The struct that begins at `at` as values by the number of their field, and where it ends; text is left out."""
    found: dict[int, Any] = {}
    number = 0
    if depth > _MAX_DEPTH or at < 0:
        raise ValueError("nested too deeply, or outside the file")
    while head := data[at]:
        kind, byte = head & 15, data[at + 1]
        if head > 15:
            number, at = number + (head >> 4), at + 1
        else:
            number, at = _signed(data, at + 1)
            byte = data[at]
        if byte < 0x80 and 4 <= kind <= 6:  # most are small numbers, and parts are read by the thousand
            found[number], at = (byte >> 1) ^ -(byte & 1), at + 1
        elif byte < 0x80 and kind == 8:
            at += byte + 1
        elif depth == 0 and kind == 9 and number == _SCHEMA:
            at = _past_schema(data, at)
        else:
            found[number], at = _value(data, at, kind, depth)
    return found, at + 1


def _past_schema(data: bytes, at: int) -> int:
    """Where the footer's list of columns ends. One writer's files all have the same, which is walked once."""
    for known in _SCHEMAS:
        if data.startswith(known, at):  # a list says itself where it ends
            return at + len(known)
    end = _items(data, at, 1)[1]
    if end - at <= _KEPT_BYTES:
        _SCHEMAS.appendleft(data[at:end])
    return end


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):  # whole numbers of 16, 32 and 64 bits
        return _signed(data, at)
    if kind == 8:  # text
        size, at = _varint(data, at)
        return None, at + size
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (9, 10):  # list, set
        return _items(data, at, depth + 1)
    return None, at + _WIDTHS[kind]


def _items(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head = data[at]
    count, at = (head >> 4, at + 1) if head >> 4 < 15 else _varint(data, at + 1)
    if count > len(data) or depth > _MAX_DEPTH:
        raise ValueError("a list is longer than the file or nested too deeply")
    items: list[Any] = []
    for _ in range(count):
        byte = data[at]
        if byte < 0x80 and head & 15 == 5:  # encodings and the like, all small
            at += 1
            continue
        # a truth value in a list takes a byte, unlike one in a struct
        item, at = (None, at + 1) if head & 15 < 3 else _value(data, at, head & 15, depth)
        items.append(item)
    return items, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while shift < 70:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise ValueError("a number has more than 64 bits")


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
