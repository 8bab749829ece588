"""Which idle runners should leave first, and what losing them costs. A policy only values.

``policy`` is the interface, ``registry`` knows all by name; each other module is one family.
"""
