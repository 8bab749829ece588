"""What one inference request is, after parsing: one module per dialect, one parser per route.

All of them end in a native request, because a worker is only ever asked natively.
"""
