"""Two kinds of cases. `make test` runs the first kind and takes minutes; `make test-all` runs every case.

A case is of the first kind unless it carries the mark `exhaustive` of tests/cases.py, which stands in the
test file: on a test (`@exhaustive`), on the later values of an argument (`first_of`), or on those
combinations of several arguments that are not needed for every pair of their values to meet once
(`pairwise`), or for every value to appear once (`each`). Plain `pytest` runs everything. The second kind
has more shapes, layouts, dtypes, architectures and versions of what the first kind has too; `make faults`
plants faults and says which of the two sees them.
"""
