"""What other toolchains bring: Keras models and weights become a JSON pair and a float checkpoint, or a reason why not.

What may enter: reading foreign files, mapping them to the chip's layers, and advice about what fits.
"""
