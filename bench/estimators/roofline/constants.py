"""How much of a device's peaks kernels reach: the constants of the roofline, what they were fitted on, and how well.

Two sources, both real measurements by others and neither in this repository; `tools/fit_roofline.py` fits again and
prints these figures.

1. Single operators, forward only, float32, torch 2.1 (scai-tech/NeuSight): `memory_frac`, `launch_s` on 11,642 rows of
   elementwise operators of 7 NVIDIA GPUs, P4 to A100 (median error 4.4 %, p90 17.7 %); `reduction_frac` on 2,033 of
   softmax (9.9 %, 34 %); `normalisation_frac` on 2,038 of layer norm (11.6 %, 37 %); `matmul_frac`, `product_depth` on
   14,521 of matrix products on P100, V100, A100 and H100 (16 %, 43 %); `winograd_frac`, `convolution_columns`,
   `convolution_tiles` on 14,697 of convolutions by 3 x 3 on P100, V100 and A100 (28 %, 71 %). Cards of 75 W and less
   are left out of products: their clocks are far below the rated ones.
2. Training steps of an RTX 3090, fp16 autocast, torch 1.12, CUDA 11.3, batches that fill the card (timm's
   `benchmark.py`), 142 rows of models of 13 families that torchvision has too (`tools/timm_models.toml`):
   `depthwise_frac`, `direct_frac`, and the factors `fp16_contiguous` and `fp16_channels_last`: four constants in all.

Error of samples/s on the steps: median 4.2 %, p90 19.3 %, rank correlation 0.994 in the sample; median 7.4 %, p90 20 %,
rank correlation 0.992 where each family was predicted with the other families' constants. What is counted, and the form
of the curves, was decided with these rows in sight, so the second figure flatters too. On 34 rows of 17 models that no
decision was made on (widths and depths that torchvision has no name for, among them vision transformers, which torch
1.12 ran without fused attention): median 8.3 %, p90 47 %, rank correlation 0.989. Worst: RegNet in channels-last
(cuDNN 8.3's direct kernels), small MobileNets and MNASNets, and Inception, whose steps take longer than estimated. No
other GPU, no float32 and no small step has been checked.
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
        winograd_frac: Of the peak rate, convolutions by 3 x 3 in float32 without tensor cores, which multiply less
            than is counted.
        convolution_columns: Channels per group at which half of it is reached.
        convolution_tiles: Tiles of its result for each multiprocessor, likewise.
        matmul_frac: Of the peak rate, products and all other convolutions.
        product_depth: Length of the sums at which half of it is reached, in convolutions too (channels per group times
            positions of the filter): single convolutions were at hand with filters of 3 x 3 only, which do not tell.
        attention_frac: Of the peak rate; FlashAttention-2 (arXiv 2307.08691) reports 0.5 to 0.73; not fitted.
        direct_frac: Of the peak rate, grouped convolutions in channels-last without a tensor-core kernel.
        layout_passes: Reads and writes of a convolution's images when they are turned round; known, not fitted.
        launch_s: Start and end of a kernel, where the device file has none.
        host_dispatch_s: Of the host for each kernel: Python, autograd, dispatcher, driver. Not fitted, see `__init__`.
        fp16_contiguous: What times in 16 bits are multiplied by, contiguous.
        fp16_channels_last: Likewise, channels-last.
    """

    memory_frac: float = 0.753
    normalisation_frac: float = 0.511
    reduction_frac: float = 0.599
    depthwise_frac: float = 0.228
    winograd_frac: float = 0.979
    convolution_columns: float = 6.92
    convolution_tiles: float = 0.256
    matmul_frac: float = 0.789
    product_depth: float = 41.7
    attention_frac: float = 0.5
    direct_frac: float = 0.0347
    layout_passes: float = 2.0
    launch_s: float = 6.59e-6
    host_dispatch_s: float = 15e-6
    fp16_contiguous: float = 0.898
    fp16_channels_last: float = 0.866

    def scale(self, precision: Precision, memory_format: MemoryFormat) -> float:
        """What times are multiplied by; 1 in float32 and tf32, of which no steps were at hand to fit on."""
        if precision not in ("bf16", "fp16"):
            return 1.0
        return self.fp16_channels_last if memory_format == "channels_last" else self.fp16_contiguous


CONSTANTS = Constants()
"""As fitted."""

FITTED_ON = (
    "fitted on single float32 operators and on large fp16 steps of an RTX 3090 (median error of samples/s 4 % "
    "there, 7 % on families held out, one in ten over 20 %); not validated on other GPUs or small steps"
)
"""What a reader must know beside an estimate: the figures above in one line."""
