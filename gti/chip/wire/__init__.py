"""The command stream between host and chip, both sides: words, registers, tiles, read-out modes, framing.

What may enter: bytes, and what they mean. Nothing of files, USB transfers or arithmetic.
"""
