"""Models in use: several sticks in a row or side by side, the emulator in their place, classification, known answers.

What may enter: what combines files, devices and host layers into answers, for programs and for the scripts.
"""
