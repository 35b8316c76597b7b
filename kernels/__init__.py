"""Triton kernels, one operation per file, importable as ``lsda_fast.kernels``.

This file imports nothing: a source checkout loads it with ``lsda_fast`` itself, where Triton may be missing.
"""
