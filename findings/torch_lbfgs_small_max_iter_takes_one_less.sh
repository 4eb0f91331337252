#!/usr/bin/env bash
# torch 2.15.0: LBFGS with max_iter=2 or 3 takes one iteration less than that, with 4 and more as many as it says.
#
# Guess: without a line search and while the loss falls, a step takes max_iter iterations.
# Seen: max_eval defaults to max_iter * 5 // 4, the evaluation before the first iteration counts, and a step ends once there
# were max_eval: after 1, 2, 4 iterations for max_iter = 2, 3, 4. Each of them moves the parameters. No GPU needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "numpy<3"

"$folder/venv/bin/python" -c '
import torch

def iterations(most):
    torch.manual_seed(0)
    weight, inputs = torch.nn.Parameter(torch.zeros(8)), torch.randn(64, 8)
    optimizer = torch.optim.LBFGS([weight], lr=0.01, max_iter=most)

    def evaluate():
        optimizer.zero_grad()
        loss = (inputs @ weight - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    return optimizer.state[weight]["n_iter"]

found = {most: iterations(most) for most in (1, 2, 3, 4, 8)}
print("iterations by max_iter:", found)
assert found == {1: 1, 2: 1, 3: 2, 4: 4, 8: 8}'
