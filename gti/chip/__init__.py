"""Everything about the chip itself; runs on NumPy, numba and pyusb, without TensorFlow."""
