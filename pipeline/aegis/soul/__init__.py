"""The soul: a rotation R and a gate g on the final hidden state h, mixed = h + g·R h.

This is what AEGIS is. The package is pure torch and knows nothing of models, runs or files but its own. Nothing is
imported here: the gate's numbers are wanted where torch is not loaded.
"""
