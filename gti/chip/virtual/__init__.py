"""Sticks in software behind pyusb: bus, bridges, chip, its memory, and plans of what goes wrong.

What may enter: what a plugged-in stick would do. The driver must not be able to tell it from a real one.
"""
