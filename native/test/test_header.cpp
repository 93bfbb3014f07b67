// Nothing: its target keeps the precompiled header of the tests.
