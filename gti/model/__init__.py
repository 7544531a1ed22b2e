"""The nets: the chip part of each comes from its dat.json, the host part from the module of its name."""
