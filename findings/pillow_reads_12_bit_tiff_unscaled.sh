#!/usr/bin/env bash
# Pillow 12.0.0: a grey TIFF of 12 bits a sample opens with mode I;16 and values of 0 to 4095; one of signed 8 bits opens as L.
#
# Guess: Pillow refuses both ("cannot identify image file"), as it does most TIFF layouts that it has no mode for.
# Seen: both open without a warning. The 12-bit file gets the mode of 16-bit images with its values as they are, so that
# whoever scales I;16 by 65535 sees an image of at most 6 % brightness; signed -1 comes out as 255.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "pillow==12.0.0"
"$folder/venv/bin/python" - "$folder" <<'PY'
import struct
import sys
from pathlib import Path

import PIL
from PIL import Image

SHORT, LONG = 3, 4


def tiff(bits: int, sample_format: int, data: bytes, width: int = 2) -> bytes:
    """A little-endian grey TIFF of one row in one strip (TIFF 6.0, sections 4 and 19)."""
    tags = [
        (256, LONG, width),
        (257, LONG, 1),
        (258, SHORT, bits),
        (259, SHORT, 1),
        (262, SHORT, 1),
        (273, LONG, 8),
        (277, SHORT, 1),
        (278, LONG, 1),
        (279, LONG, len(data)),
        (339, SHORT, sample_format),
    ]
    strip = data + b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + b"\0" * 4


folder = Path(sys.argv[1])
(folder / "grey12.tif").write_bytes(tiff(12, 1, bytes([0xFF, 0xF0, 0x00])))  # 4095, 0
(folder / "signed8.tif").write_bytes(tiff(8, 2, bytes([0xFF, 0x01])))  # -1, 1
seen = []
for name in ("grey12.tif", "signed8.tif"):
    with Image.open(folder / name) as image:
        seen.append((name, image.mode, [image.getpixel((x, 0)) for x in range(2)]))
print(PIL.__version__, *seen)
sys.exit(seen != [("grey12.tif", "I;16", [4095, 0]), ("signed8.tif", "L", [255, 1])])
PY
