"""The kernels: arrays in, arrays and named tuples out.

Only this room imports the compiled modules.
"""
