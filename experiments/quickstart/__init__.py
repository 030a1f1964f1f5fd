"""The fits of `hrsam quickstart`."""
