"""The flags of XLA with which tests, and the processes that they start, compile."""

import os

# The older emitters of fusions, with which tests compile in half the time; an XLA without them ignores the option.
_OLDER = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"


def flags(devices: int | None = None) -> str:
    """Returns XLA_FLAGS for a process with so many fake devices; None: as many as what starts it says, or one.

    What is measured, or compared with other libraries, is compiled as users do: .ci/run sets CGRPO_TEST_AS_USERS.
    """
    older = "" if os.environ.get("CGRPO_TEST_AS_USERS") else _OLDER
    count = "" if devices is None else f"--xla_force_host_platform_device_count={devices}"
    return " ".join(filter(None, [older, count]))
