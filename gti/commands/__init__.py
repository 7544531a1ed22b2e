"""The verbs of the command `gti`, a module each, and what their command lines have in common.

What may enter: flags, reading what a user names, printing. What computes belongs to the rooms below.
"""
