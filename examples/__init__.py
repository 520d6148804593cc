"""Small programs, one idea each: ``python -m examples.hello`` from the root, with FF_URL set or on a terminal."""
