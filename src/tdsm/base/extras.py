"""What a plain installation leaves out, and how to get it.

The core decomposes fields; command line, data, pages and the rest come as extras: `pip install "tdsm[all]"`.
"""

LIBRARIES = {
    "PIL": "data",
    "pyarrow": "data",
    "sklearn": "data",
    "datasets": "datasets",
    "rich": "train",
    "scipy": "train",
    "tyro": "train",
    "matplotlib": "report",
    "starlette": "explore",
    "uvicorn": "explore",
    "ray": "ray",
    "skimage": "shapes",
    "trimesh": "shapes",
    "accelerate": "trackers",
}


def missing_words(error: ImportError) -> str | None:
    """Say what to install for a library of an extra; None for any other module.

    >>> missing_words(ModuleNotFoundError("No module named 'tyro'", name="tyro"))
    'the library tyro is not installed. Run: pip install "tdsm[train]", or "tdsm[all]" for everything.'
    """
    library = (error.name or "").partition(".")[0]
    if library not in LIBRARIES:
        return None
    extra = LIBRARIES[library]
    return f'the library {library} is not installed. Run: pip install "tdsm[{extra}]", or "tdsm[all]" for everything.'
