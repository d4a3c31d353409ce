"""What a sandbox may leave behind."""

import pathlib
import time

_SECONDS = 20.0  # that a launcher whose worker was ended has to end itself


def lasting_orphans():
    """Processes of sandboxes that nobody waits for and that don't end by themselves."""
    deadline = time.monotonic() + _SECONDS
    while (found := orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def orphans():
    """Processes of sandboxes that nobody waits for."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"sandbox/launcher.py" in command and (folder / "stat").read_text().rpartition(")")[2].split()[1] == "1":
                found.append(folder.name)
        except OSError:
            continue  # it has ended meanwhile
    return found
