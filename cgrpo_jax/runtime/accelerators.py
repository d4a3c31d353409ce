"""Whether this machine has an accelerator at all, without asking a driver: importing this takes no time."""

import glob
import os
import pathlib
from collections.abc import Mapping

# Files that TPUs, NVIDIA's (also in WSL) and AMD's GPUs have.
_DEVICES = ("/dev/accel*", "/dev/vfio", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")
_GOOGLE, _VENDORS = "0x1ae0", "/sys/bus/pci/devices/*/vendor"
# What says that there is a TPU, or is to be one, however it is reached. JAX and libtpu set the exceptions.
_VARIABLES = ("TPU_", "CLOUD_TPU_", "COLAB_TPU_", "MEGASCALE_", "PJRT_", "JAX_FORCE_TPU_INIT", "JAX_PLATFORM")
_SET_BY_IMPORTS = ("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH")


def is_none(*, root: str = "/", environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether nothing at all speaks for an accelerator, and nobody has said which platform to use.

    There libtpu, if it is installed, has nothing to do but to fill the screen with what it did not find. Where anything
    speaks for one, JAX finds out.

    Args:
      root: of the file system.
      environment: variables of the process.
    """
    if any(name.startswith(_VARIABLES) and name not in _SET_BY_IMPORTS for name in environment):
        return False
    if any(glob.glob(os.path.join(root, pattern.lstrip("/"))) for pattern in _DEVICES):
        return False
    for vendor in glob.glob(os.path.join(root, _VENDORS.lstrip("/"))):
        try:
            if pathlib.Path(vendor).read_text().strip() == _GOOGLE and _is_accelerator(vendor):
                return False
        except OSError:
            return False
    return True


def _is_accelerator(vendor: str) -> bool:
    """Returns whether a PCI device of Google's is no network card or disk, which its virtual machines all have."""
    kind = pathlib.Path(vendor).with_name("class").read_text().strip()
    return not kind.startswith(("0x01", "0x02"))  # storage, network
