"""Tables of ``benchmarks/results/speed.json``, for :mod:`measured`."""


def cost(report):
    """Time of fit and predict by method, in units of the dense parent's."""
    rows = [
        [str(row["h"]), name_of(row), str(row["expansion"]), *_times(row)]
        for row in headline(report)
        if row["prune"] and row["expansion"] in (4, 8)
    ]
    cell = report["rows"][0]
    caption = (
        f"Time relative to expansion=1 with the same parents and epochs; {cell['d']} "
        f"inputs, {cell['C']} classes, {cell['rows']} rows, batches of "
        f"{report['settings']['batch_size']}, {_machine(report)}."
    )
    return caption, ["parents", "network", "expansion", *TIMES], rows


def engine(report):
    """Time of a fit in units of what else one could run, at every size."""
    by_cell = {}
    for row in report["rows"]:
        by_cell.setdefault(_cell(row), []).append(row)
    rows = []
    for cell, of_cell in by_cell.items():
        others = {row["model"]: row["fit"] for row in of_cell if row["prune"] is None}
        structured = next(
            row["fit"]
            for row in of_cell
            if (row["prune"], row["split"], row["expansion"])
            == ("structured", "contiguous", 8)
        )
        naive = others.get("naive masked skorch")
        rows.append(
            [
                *cell,
                f"{1 / others['bare torch loop']:.2f}",
                f"{1 / others['MLPClassifier']:.2f}",
                "–" if naive is None else f"{naive / structured:.1f}",
            ]
        )
    header = [*CELL, "bare torch loop", "MLPClassifier", "masked net, times faster"]
    caption = (
        "Time of a fit with expansion=1, divided by that of a bare loop in torch and "
        "of MLPClassifier in float32 (below 1: faster), and how many times faster than "
        "a masked net in skorch a fit with expansion=8, structured, contiguous is; "
        f"{_machine(report)}."
    )
    return caption, header, rows


def cells(report):
    """Time of fit and predict at other sizes, and what binds."""
    shown = headline(report)
    rows = [
        [
            *_cell(row),
            name_of(row),
            str(row["expansion"]),
            *_times(row),
            row["binds"].replace("no gather", "–"),
        ]
        for row in report["rows"]
        if row["prune"] and row not in shown
    ]
    header = [*CELL, "network", "expansion", *TIMES]
    caption = (
        f"Time relative to expansion=1 at other sizes, {_machine(report)}; "
        "multiplications of a training step and activations relative to the dense "
        "parent's, and whether columns are gathered for predictions."
    )
    return caption, [*header, "what binds"], rows


CELL = ["inputs – parents – classes", "rows"]
TIMES = ["fit", "predict 4096 rows", "predict one row"]


def _cell(row):
    return f"{row['d']} – {row['h']} – {row['C']}", str(row["rows"])


def _times(row):
    return [f"{row[key]:.2f}" for key in ("fit", "predict_4096", "predict_1")]


def headline(report):
    """Rows of the cells that were measured in full: the naive way is in them."""
    full = {
        (row["d"], row["h"], row["C"], row["rows"])
        for row in report["rows"]
        if row["model"].startswith("naive")
    }
    full = {cell for cell in full if cell[3] == report["settings"]["rows"]}
    return [
        row
        for row in report["rows"]
        if (row["d"], row["h"], row["C"], row["rows"]) in full
    ]


def _machine(report):
    settings, hardware = report["settings"], report["hardware"]
    device = hardware["gpu"] if settings["device"] != "cpu" else hardware["cpu"]
    return f"{device}, {settings['threads']} thread(s)"


def name_of(row):
    return f"{row['prune']}, {row['split']}"
