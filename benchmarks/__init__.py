"""Measurements, run by hand; a package, since some releases of pyarrow install one of this name."""
