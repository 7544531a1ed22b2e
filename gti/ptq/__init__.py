"""Post-training quantization: a float network and some images -> the chip's integers, without labels or training.

What may enter: what finds integers, caps and scales. The formulas that they obey live in gti/quantize.py.
"""
