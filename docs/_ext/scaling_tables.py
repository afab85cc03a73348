"""Tables of ``benchmarks/results/scaling.json``, for :mod:`measured`."""


def _size(row):
    return f"{row['d']} – {row['h']} – {row['C']}", row["network"]


def scaling(report):
    """Rows per second of fits on several processes, and the share of messages."""
    rows = [
        [
            *_size(row),
            str(row["processes"]),
            str(row["batch_size"]),
            f"{row['step_ms']:.2f}",
            f"{row['cpu_ms']:.2f}",
            f"{row['message_ms']:.2f}" if row["processes"] > 1 else "–",
            f"{row['rows_per_s']:.0f}",
            f"{100 * row['all_reduce_share']:.0f} %",
        ]
        for row in report["rows"]
        if row["batch"] in ("together", "each")
    ]
    header = ["inputs – parents – classes", "network", "processes", "batch_size"]
    header += ["step, ms", "CPU, ms", "message, ms", "rows per second", "all-reduce"]
    hardware = report["hardware"]
    caption = (
        f"Fits on {hardware['cpu']} with {hardware['cores']} cores, one thread a "
        f"process, {report['settings']['rows']} rows each, gloo on one machine, the "
        f"fastest of {report['settings']['repeats']} rounds. When they began, "
        f"{report['load_before']:.0f} processes ran or waited for these cores. Medians "
        f"of the time and of the CPU time of a step; the time "
        f"of the all-reduce alone, where processes begin it together; and its share of "
        f"the whole time, waiting for the slower process included."
    )
    return caption, header, rows


def scaling_simulated(report):
    """Speedup of larger worlds over one process, simulated."""
    sizes = sorted({row["processes"] for row in report["simulated"]})
    found = {}
    for row in report["simulated"]:
        key = (*_size(row), row["link"])
        found.setdefault(key, {})[row["processes"]] = row["speedup"]
    rows = [[*key, *(f"{of[size]:.1f}" for size in sizes)] for key, of in found.items()]
    links = report["links"]
    described = ", ".join(
        f"{name}: {1e6 * link['latency_s']:.0f} µs and "
        f"{link['bytes_per_s'] / 1e9:.3g} GB/s"
        for name, link in links.items()
    )
    caption = (
        f"Rows per second relative to one process, with a batch of "
        f"{report['settings']['batch_size']} rows for each process, by number of "
        f"processes. Latency and bandwidth of a message: {described}; those of this "
        f"machine are fitted to the all-reduce of two processes, the others assumed."
    )
    header = ["inputs – parents – classes", "network", "link", *map(str, sizes)]
    return caption, header, rows


def scaling_estimate(report):
    """Hours of an epoch over very many rows, by arithmetic."""
    assumed = report["estimate"]["assumptions"]
    rows = [
        [
            *_size(row),
            str(row["processes"]),
            f"{row['compute_h']:.2f}",
            f"{row['messages_h']:.2f}",
            f"{row['reading_h']:.2f}",
            f"{row['GB_on_disk']:.1f}",
            f"{row['GB_sent']:.0f}",
        ]
        for row in report["estimate"]["rows"]
    ]
    batch = report["settings"]["batch_size"]
    caption = (
        f"One epoch over {assumed['rows']:.0e} rows. Assumed: batches of {batch} rows "
        f"for each process, so that an epoch has {assumed['rows']:.0e} / ({batch} × "
        f"processes) steps; steps as long as the mean CPU time of one process here, "
        f"with one thread; {assumed['network']} as above; numbers of "
        f"{assumed['bytes_per_number']} bytes read once an epoch, by every process "
        f"from a disk of its own, at {assumed['disk_bytes_per_s'] / 1e6:.0f} MB/s; no "
        f"process slower than the others."
    )
    header = ["inputs – parents – classes", "network", "processes"]
    header += ["computing, h", "messages, h", "reading, h"]
    return caption, [*header, "GB read, each", "GB sent, each"], rows
