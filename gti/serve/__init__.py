"""One stick on the network: a page to look at, an API of JSON, DeepStack's paths, health and metrics.

What may enter: HTTP, and what it needs of the runtime. How frames are computed belongs to gti/chip/runtime.
"""
