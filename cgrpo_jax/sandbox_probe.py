"""An empty program: `sandbox` runs it to see what the machine allows."""


def main(job):
    """Does nothing."""
