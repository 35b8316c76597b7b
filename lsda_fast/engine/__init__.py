"""Backends: how a sampler run is executed on a machine."""
