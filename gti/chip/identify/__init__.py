"""What a stick that nobody has seen does: small networks that tell behaviours apart, and what they told.

What may enter: the cases and the search for them, bringing a stick up, the questions put to it, its profile.
"""
