"""Public specifications of accelerators, by the device kind of JAX."""

from dataclasses import dataclass

TPU_LANES = 128  # values side by side in a vector register


@dataclass(frozen=True)
class Chip:
    """The specifications of one *JAX device*: half a chip where a chip appears as two devices.

    Attributes:
      bf16_flops: dense bfloat16 FLOP/s.
      hbm_gb: memory as the vendor states it; a program gets somewhat less.
      hbm_bandwidth: bytes/s.
      links: ports of the interconnect.
      link_bandwidth: bytes/s of one port in one direction.
    """

    bf16_flops: float
    hbm_gb: float
    hbm_bandwidth: float
    links: int = 0
    link_bandwidth: float = 0.0


# Google: the tables of key specifications in docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x},
# whose bandwidth of the interconnect is that of all ports in both directions (v5e 400, v5p 1,200,
# v6e 800, TPU7x 1,200 GB/s); links of TPU v4: arXiv 2304.01433, table 4.
# NVIDIA: the data sheets of A100, H100 and H200; figures "with sparsity" are halved.
_V5E = Chip(197e12, 16, 819e9, links=4, link_bandwidth=50e9)
_V5P = Chip(459e12, 95, 2765e9, links=6, link_bandwidth=100e9)
_V6E = Chip(918e12, 32, 1640e9, links=4, link_bandwidth=100e9)
CHIPS = {
    "TPU v4": Chip(275e12, 32, 1200e9, links=6, link_bandwidth=50e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(2307e12 / 2, 192 / 2, 7380e9 / 2, links=6, link_bandwidth=100e9 / 2),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80, 2039e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 40, 1555e9),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 80, 1935e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80, 3350e9),  # SXM
    "NVIDIA H100 PCIe": Chip(756e12, 80, 2000e9),
    "NVIDIA H100 NVL": Chip(835e12, 94, 3900e9),
    "NVIDIA H200": Chip(989e12, 141, 4800e9),  # SXM
}
