"""The kernels: arrays in, arrays and named tuples out.

No other package imports the compiled modules.
"""
