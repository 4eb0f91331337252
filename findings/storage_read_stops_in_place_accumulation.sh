#!/usr/bin/env bash
# torch 2.15.0: reading `gradient.untyped_storage()` in a backward makes autograd add the next gradient out of place.
#
# Guess: the call gives a view of the storage; when that Python object is gone, nothing has changed.
# Seen: where several gradients meet, autograd adds them in place (`add_`) if nobody else holds the first. Once its storage has
# had a Python object, even one that was dropped at once, it is not taken for its own: the sum is a new tensor (`add`). So code
# that only looks (a hook that counts bytes, a memory tracer) raises the peak by a gradient for the time of the sum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import torch


def sums(look: bool) -> list[str]:
    """The operators that add up three gradients of one tensor."""

    class Branch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            own = gradient.clone()
            if look:
                own.untyped_storage()
            return own

    x = torch.ones(1 << 20, requires_grad=True) * 2
    loss = sum(Branch.apply(x).sum() for _ in range(3))
    with torch.autograd.profiler.profile() as profile:
        loss.backward()
    return [event.name for event in profile.function_events if event.name in ("aten::add", "aten::add_")]


print(torch.__version__, "untouched:", sums(False), "looked at:", sums(True))
sys.exit((sums(False), sums(True)) != (["aten::add_", "aten::add_"], ["aten::add", "aten::add_"]))
PY
