"""The chip's integer arithmetic and the engines that compute it, every code equal to `arithmetic`.

What may enter: numbers in, codes out. Nothing of files or USB.
"""
