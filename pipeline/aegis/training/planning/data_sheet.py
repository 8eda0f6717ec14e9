"""The rate of a GPU that is not here, by its maker's data sheet, and the share of a rate that training reaches."""

RTX_3060_FLOPS = 25.5e12
"""Dense bf16 products with float32 sums: twice its 12.74 TFLOP/s of float32 (3,584 cores at 1.777 GHz, two operations
each), as for every GPU of its generation (NVIDIA Ampere GA102 whitepaper, table 2)."""
SHARE_REACHED = 0.31
"""An H200's share of its data sheet's 989 TFLOP/s at 24.8 ms per step of 512 tokens, compiled (tools/README.md)."""
