"""The open Model Development Kit for the Gyrfalcon GTI 2801."""

__version__ = "0.1.0"
