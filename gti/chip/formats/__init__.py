"""Files: .DAT and .MODEL with what lies inside them, NumPy arrays, folders, and differences between files.

What may enter: reading and writing without trust, and what a file says. Nothing that computes codes.
"""
