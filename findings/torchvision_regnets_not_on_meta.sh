#!/usr/bin/env bash
# torchvision 0.29.2, torch 2.15.0: every classification model can be built under torch.device("meta") but the RegNets.
#
# Guess: all of them can, as constructors only make parameters; counting parameters without memory works for any name.
# Seen: the 15 regnet_x_* and regnet_y_* raise NotImplementedError ("Cannot copy out of meta tensor; no data!"); the widths of
# their blocks are computed with tensors and read back as Python numbers. All other names are built.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "torchvision==0.29.2" "numpy<3"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torchvision
from torchvision import models

names = models.list_models(module=models)
refused, words = [], set()
for name in names:
    try:
        with torch.device("meta"):
            models.get_model(name)
    except NotImplementedError as error:
        refused.append(name)
        words.add(str(error).splitlines()[0])
print(torch.__version__, torchvision.__version__, f"{len(refused)} of {len(names)} refused:", *refused, *words)
regnets = [name for name in names if name.startswith("regnet_")]
sys.exit(refused != regnets or len(regnets) != 15 or words != {"Cannot copy out of meta tensor; no data!"})
PY
