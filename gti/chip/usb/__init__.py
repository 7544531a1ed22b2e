"""Sticks on the bus: the transports with the settings they assume, finding and locking, frames with recovery, traces.

What may enter: how bytes reach a stick and come back. A new transport is one module and one row in `devices`.
"""
