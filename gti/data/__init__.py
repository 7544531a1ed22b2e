"""Data sets on disk: TFRecords, class folders and label files, looked through before they are used.

What may enter: finding, reading and checking examples. Chip units and batches are gti/data_utils.py's.
"""
