"""A network of the chip in other toolchains' formats: exact ONNX, every code of the emulator.

What may enter: writers that need a library of their own (onnx), imported here alone. Nothing that computes codes.
"""
