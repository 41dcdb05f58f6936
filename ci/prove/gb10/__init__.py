"""A GB10 in software: a library's PTX, executed through its own host code, with every access checked.

C++ here (compiled when it is needed, never shipped) reads PTX and runs blocks, warps and lanes. It runs what is
compiled for mma.sync: Hopper's kernels (WGMMA, TMA, mbarrier) are outside it. It proves nothing about ptxas' output,
about timing, or about the hardware's approximations of ex2, rcp and lg2.
"""
