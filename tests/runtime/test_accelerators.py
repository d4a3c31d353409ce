"""An accelerator is never overlooked, and a machine without one is known as such."""

import pytest

from cgrpo_jax.runtime import accelerators


def pci(root, vendor, kind, number=0):
    folder = root / "sys" / "bus" / "pci" / "devices" / f"0000:00:0{number}.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def none(root, **environment):
    return accelerators.is_none(root=str(root), environment=environment)


def test_a_machine_without_one(tmp_path):
    assert none(tmp_path)
    pci(tmp_path, "0x8086", "0x060000")
    pci(tmp_path, "0x1ae0", "0x020000", 1)  # the network card of a virtual machine of Google's
    pci(tmp_path, "0x1ae0", "0x010802", 2)  # its disk
    assert none(tmp_path)
    assert none(tmp_path, PATH="/bin", TPU_SKIP_MDS_QUERY="1", TPU_LIBRARY_PATH="x")  # set by imports


@pytest.mark.parametrize("file", ["accel0", "vfio/0", "nvidia0", "nvidiactl", "dxg", "kfd"])
def test_a_device_file(tmp_path, file):
    device = tmp_path / "dev" / file
    device.parent.mkdir(parents=True)
    device.write_text("")
    assert not none(tmp_path)


def test_a_chip_of_googles(tmp_path):
    pci(tmp_path, "0x1ae0", "0x120000")
    assert not none(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "TPU_NAME",
        "TPU_WORKER_ID",
        "TPU_ACCELERATOR_TYPE",
        "COLAB_TPU_ADDR",
        "PJRT_DEVICE",
        "JAX_PLATFORMS",
        "JAX_FORCE_TPU_INIT",
    ],
)
def test_a_variable(tmp_path, name):
    assert not none(tmp_path, **{name: "x"})
