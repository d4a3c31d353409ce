"""TPU chips: published limits of one JAX device of each kind."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device of a chip kind can hold and do; a device is a whole chip except where `devices_per_chip` > 1.

    Attributes:
      hbm_bytes: what a program may use, as the compiler says it; the rest of the chip's HBM is the runtime's.
      flops: peak dense bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s out of the device over all its links, one direction (published figures count both).
      axes: dimensions of the network; 2 or 3.
      max_chips: the largest single slice.
      cores: TensorCores in one device; two of them share its HBM and compute as one ("megacore").
      devices_per_chip: 2 on tpu7x, whose two halves have their own HBM; all figures here are per device.
      options: what the topology is made with beside its name.
    """

    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    axes: int
    max_chips: int
    cores: int = 1
    devices_per_chip: int = 1
    options: dict = dataclasses.field(default_factory=dict)


# From the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of cloud.google.com/tpu/docs. They give ICI per
# chip both ways (v5e 400, v5p 1200, v6e 800, tpu7x 1200 GB/s), halved here; v4 has 6 links of 50 GB/s each way.
# `hbm_bytes` is what libtpu 0.0.42 says is available when a program does not fit.
CHIPS = {
    "v4": Chip(int(30.75 * GIB), 275e12, 1200e9, 300e9, 3, 4096, cores=2, options={"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, 2, 256),
    "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9, 600e9, 3, 6144, cores=2),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1638e9, 400e9, 2, 256),
    "tpu7x": Chip(int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2, 600e9 / 2, 3, 9216, devices_per_chip=2),
}
