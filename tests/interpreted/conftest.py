"""Less garbage collection: kernels in the interpreter make many small things, and torch holds many more."""

import gc


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()
