"""Tables on the screen and JSON beside the machine they were measured on."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def hardware():
    """Describe the machine, its load in the last minute, and the versions."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "scikit-learn", "skorch", "numpy", "scipy", "sklearn-fpe")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": gpu,
        "torch_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def write_json(path, rows, settings, **more):
    """Write rows and how they were made; where to is no part of that."""
    settings = {name: value for name, value in settings.items() if name != "json"}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings, "hardware": hardware(), "rows": rows, **more}
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(f"wrote {path}")


def print_table(rows, columns):
    """Print dicts as a table of the given columns."""
    cells = [[_text(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))


def _text(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
