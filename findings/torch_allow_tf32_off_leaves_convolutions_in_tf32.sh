#!/usr/bin/env bash
# torch 2.15.0: `torch.backends.cudnn.allow_tf32 = False` leaves convolutions in TF32 where torch.backends.fp32_precision is "tf32".
#
# Guess: the older switch, set last, wins, as torch.backends.cuda.matmul.allow_tf32 does for matrix products; or setting it raises.
# Seen: it is taken without a word, cudnn.conv and cudnn.rnn stay "tf32", and reading the switch back raises RuntimeError, also
# within hasattr(). Matrix products are in float32 again, as asked. No GPU needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "numpy<3"

"$folder/venv/bin/python" -W ignore -c '
import torch

backends = torch.backends
backends.fp32_precision = "tf32"
backends.cuda.matmul.allow_tf32 = False
backends.cudnn.allow_tf32 = False
found = [backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision]
print("matmul, conv, rnn after both older switches were turned off:", *found)
assert found == ["ieee", "tf32", "tf32"]
try:
    backends.cudnn.allow_tf32
except RuntimeError as error:
    print("reading it back:", str(error)[:60])
else:
    raise SystemExit("reading it back worked")'
