"""The order of the examples: from the first steps to the special cases."""

ORDER = (
    "quickstart.py",
    "linear_probe_or_network.py",
    "choosing_expansion.py",
    "regression.py",
    "save_and_export.py",
    "what_the_children_see.py",
    "clip_pipeline.py",
    "transformer_in_pipeline.py",
    "boolean_tasks.py",
    "memory_map.py",
    "dask_search.py",
    "embed_with_dask.py",
)


def key(filename):
    """Sort by :data:`ORDER`; what it does not name comes last, by name."""
    place = ORDER.index(filename) if filename in ORDER else len(ORDER)
    return place, filename
