"""What the host computes around the chip: image files, preprocessing in front, the layers of a full .MODEL behind.

What may enter: NumPy on one image or result. Nothing that knows a device.
"""
