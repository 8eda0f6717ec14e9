"""The soul: a rotation R and a gate g on the final hidden state h, mixed = h + g·R h.

This room is pure torch and knows no model, no run and no file but its own. This module imports nothing, so that the
gate's numbers can be used without loading torch.
"""
