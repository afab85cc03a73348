"""How the figures of the examples look on the pages."""


def enlarge_text(gallery_conf, fname):
    """Enlarge the text of the figures, so that it is legible on a phone."""
    import matplotlib as mpl

    mpl.rcParams["font.size"] = 12
