"""What all displays do before they draw."""


def import_pyplot(caller):
    """Import and return pyplot; it is optional, so the error says how to get it."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib, which the extra `plot` brings: "
            'pip install "sklearn-fpe[plot]"'
        ) from error
    return pyplot
