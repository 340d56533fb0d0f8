"""The HTTP service: it reads and writes the store, and never loads torch or Ray."""
