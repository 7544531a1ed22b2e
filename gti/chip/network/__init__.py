"""What a network for the chip is: its types, its JSON form, every rule, its memory plan and what it costs.

What may enter: facts about networks as such. Weights as files belong to formats, their use to emulator.
"""
