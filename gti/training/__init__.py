"""Training: one loop for all stages, checkpoints that survive a kill, calibration, evaluation, restoring.

What may enter: what changes or measures a checkpoint. Formulas live in gti/quantize.py and gti/fusion.py.
"""
