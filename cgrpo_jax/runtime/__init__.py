"""A process and its machine: processes, signals, files, what a person sees, chips; see README.md."""
