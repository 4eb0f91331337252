#!/usr/bin/env bash
# torch 2.15.0, build for CUDA: PYTORCH_HIP_ALLOC_CONF configures the CUDA caching allocator, and wins over PYTORCH_ALLOC_CONF.
#
# Guess: a build for CUDA reads PYTORCH_ALLOC_CONF and its older name PYTORCH_CUDA_ALLOC_CONF; the HIP variable is for ROCm.
# Seen: of the variables that are set, the first of CUDA, HIP, plain counts, whatever the build; the others are not read.
# So a PYTORCH_HIP_ALLOC_CONF left over in an image's environment silently replaces the documented variable. No GPU needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "numpy<3"

in_force() {
    env -u PYTORCH_CUDA_ALLOC_CONF -u PYTORCH_HIP_ALLOC_CONF -u PYTORCH_ALLOC_CONF "$@" "$folder/venv/bin/python" -c '
import torch
assert torch.version.hip is None and torch.version.cuda, "a build for CUDA is needed"
print(torch.cuda.memory._snapshot()["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"])'
}

hip_and_plain=$(in_force PYTORCH_HIP_ALLOC_CONF=max_split_size_mb:64 PYTORCH_ALLOC_CONF=max_split_size_mb:128)
cuda_and_hip=$(in_force PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:32 PYTORCH_HIP_ALLOC_CONF=max_split_size_mb:64)
plain=$(in_force PYTORCH_ALLOC_CONF=max_split_size_mb:128)
echo "HIP 64 and plain 128: $hip_and_plain"
echo "CUDA 32 and HIP 64:   $cuda_and_hip"
echo "plain 128 alone:      $plain"
[ "$hip_and_plain" = max_split_size_mb:64 ] && [ "$cuda_and_hip" = max_split_size_mb:32 ] && [ "$plain" = max_split_size_mb:128 ]
