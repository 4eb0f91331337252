"""The memory of a training step as a test: pytest fails where a change raises the peak, and names the operator."""

import torch
from model import LanguageModel, step

INPUTS = ["int64[B,128]", "int64[B,128]"]


def test_a_step_takes_the_memory_that_it_took(training_memory):
    memory = training_memory(LanguageModel, step=step, inputs=INPUTS, optimizer=torch.optim.AdamW, batch_size=16)
    memory.assert_unchanged()
    memory.assert_below("2 GiB")
