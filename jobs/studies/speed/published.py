"""Published throughputs of FSDP on GPUs, to compare the estimate with: each with its source, and what is not said there.

In each group the first row gives what share of the peak the network computes at; the others are predicted with it.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A figure: tokens per second and GPU, and how they were reached."""

    group: str
    network: str  # of decoder.SIZES
    device: str
    gpus: int
    shards: int
    rows: int  # sequences of a GPU
    tokens: int  # of a sequence
    recomputed: float  # share of the forward pass that the backward pass runs again
    gbit: float  # of network a GPU
    throughput: float


TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3: 8 x H100 machines, 400 Gbit/s a GPU"
COMPILED = "the same, with torch.compile"
A100S = (
    "torchtitan, docs/performance.md: 64 A100, selective (every other layer) and full checkpointing; network assumed"
)
FMS = "foundation-model-stack/fms-fsdp, README.md: 128 A100, 400 Gbit/s a machine; shards of its HSDP assumed to be a machine's"
PAPER = "Zhao et al., arXiv 2304.11277, section 5.4, FROM MEMORY: GPT-175B on 128 A100, 173 and 186 TFLOP/s, 2 Tbit/s a machine"

#: Operations of a token of GPT-175B with recomputation, as Megatron's authors count them (arXiv 2104.04473):
#: 96 L h^2 (1 + s / 6h + V / 16 L h).
GPT_OPERATIONS = 96 * 96 * 12288**2 * (1 + 2048 / (6 * 12288) + 50000 / (16 * 96 * 12288))

PUBLISHED = [
    Published(TITAN, "Llama 3 8B", "H100", 8, 8, 2, 8192, 0.5, 400, 5762),
    Published(TITAN, "Llama 3 8B", "H100", 128, 128, 2, 8192, 0.5, 400, 5605),
    Published(COMPILED, "Llama 3 8B", "H100", 8, 8, 2, 8192, 0.5, 400, 6667),
    Published(COMPILED, "Llama 3 8B", "H100", 128, 128, 2, 8192, 0.5, 400, 6514),
    Published(A100S, "Llama 3 8B", "A100", 64, 64, 1, 8192, 0.5, 200, 2904),
    Published(A100S, "Llama 3 70B", "A100", 64, 64, 1, 8192, 1.0, 200, 331),
    Published(FMS, "Llama 2 7B", "A100", 128, 8, 2, 4096, 0.0, 50, 3760),
    Published(FMS, "Llama 2 70B", "A100", 128, 128, 6, 4096, 1.0, 50, 380),
    Published(PAPER, "GPT 175B", "A100", 128, 128, 2, 2048, 1.0, 250, 186e12 / GPT_OPERATIONS),
    Published(PAPER, "GPT 175B", "A100", 128, 128, 1, 2048, 1.0, 250, 173e12 / GPT_OPERATIONS),
]
