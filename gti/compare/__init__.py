"""Two stages of one model against each other: where they differ first, and why; data sets through a stick.

What may enter: what lines up results of training, emulator and stick.
"""
