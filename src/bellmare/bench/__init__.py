"""Load generation for `bellmare demo` and the tests."""
