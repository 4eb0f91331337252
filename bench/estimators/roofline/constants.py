"""How much of a device's peaks kernels reach: the constants of the roofline, what they were fitted on, and how well.

Two sources, both real measurements by others and neither in this repository; `tools/fit_roofline.py` fits again.

1. Single operators in float32, forward only, on NVIDIA V100, P100, P4, T4, L4, A100 (two) and H100, torch 2.1
   (scai-tech/NeuSight, `op_latency_neusight.parquet`): {single}
2. Training steps of an RTX 3090 in fp16 autocast, torch 1.12 with CUDA 11.3, large batches
   (huggingface/pytorch-image-models, `train_throughput_timm_rtx3090.csv`): {steps}
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.records import MemoryFormat, Precision


@dataclass(frozen=True, slots=True)
class Constants:
    """Shares of the device's peaks (`_frac`), sides of products at which half of a share is reached, and seconds.

    Attributes:
        memory_frac: Of the bandwidth: elementwise kernels, copies, the optimizer, and products bound by traffic.
        normalisation_frac: Of the bandwidth, with the reads that `operators` counts.
        reduction_frac: Of the bandwidth: softmax, sums.
        depthwise_frac: Of the bandwidth.
        convolution_frac: Of the peak rate; above 1 since Winograd's transform multiplies less than is counted.
        convolution_columns: Channels a group at which half of it is reached.
        convolution_depth: Channels a group times positions of the filter, likewise.
        matmul_frac: Of the peak rate.
        matmul_depth: Length of the sums at which half of it is reached.
        attention_frac: Of the peak rate; FlashAttention-2 (arXiv 2307.08691) reports 0.5 to 0.73 on an A100. Not fitted.
        direct_frac: Of the peak rate, grouped convolutions in channels-last without a tensor-core kernel.
        layout_passes: Reads and writes of a convolution's images when they are turned round; known, not fitted.
        launch_s: Start and end of a kernel, where the device file has none.
        host_dispatch_s: Of the host for each kernel: Python, autograd, dispatcher, driver. Not fitted, see `__init__`.
        fp16_contiguous: What times in 16 bits are multiplied by, contiguous.
        fp16_channels_last: Likewise, channels-last.
    """

    memory_frac: float = 0.753
    normalisation_frac: float = 0.559
    reduction_frac: float = 0.628
    depthwise_frac: float = 0.34
    convolution_frac: float = 1.066
    convolution_columns: float = 11.2
    convolution_depth: float = 72.8
    matmul_frac: float = 1.0
    matmul_depth: float = 48.0
    attention_frac: float = 0.5
    direct_frac: float = 0.04
    layout_passes: float = 2.0
    launch_s: float = 6.6e-6
    host_dispatch_s: float = 15e-6
    fp16_contiguous: float = 1.0
    fp16_channels_last: float = 1.0

    def scale(self, precision: Precision, memory_format: MemoryFormat) -> float:
        """What times are multiplied by; 1 in float32 and tf32, of which no steps were at hand to fit on."""
        if precision not in ("bf16", "fp16"):
            return 1.0
        return self.fp16_channels_last if memory_format == "channels_last" else self.fp16_contiguous


CONSTANTS = Constants()
"""As fitted."""

FITTED_ON = "placeholder"
