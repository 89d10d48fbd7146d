"""How long the memory explorer takes for one change of a control, from the change to the pictures.

Prints milliseconds for each control, the median and the largest of several changes. The bytes of a picture still have
to travel to the browser: their size is printed too.
"""

import statistics
import time

from common import machine

import blockkit as bk

CHANGES = {
    "matrix": ("450 x 300 x 450", "400 x 250 x 400", "300 x 200 x 300"),
    "coils": (12, 20, 8),
    "samples": (4.5, 18.0, 9.0),
    "unrolls": (10, 3, 6),
    "channels": (16, 64, 32),
    "layers": (3, 8, 5),
    "block": ((150, 100, 150), (75, 67, 75), (100, 100, 100)),
    "coils at once": (4, 8, 1),
    "recompute": (False, True),
    "offload": (True, False),
    "maps": (True, False),
    "precision": ("half", "double", "single"),
    "run": (False, True),
    "budget": (8.0, 141.0, 24.0),
}


def main() -> None:
    """Print the table."""
    explorer = bk.MemoryExplorer()
    controls = explorer._controls.by_name
    controls["coils"].value = 7  # the first change finds fonts
    print(machine())
    print("| control | median ms | largest ms |\n| --- | --- | --- |")
    for name, values in CHANGES.items():
        times = []
        for value in values * 3:
            start = time.perf_counter()
            controls[name].value = value
            times.append(1000 * (time.perf_counter() - start))
        print(f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |", flush=True)
    print(f"{sum(len(picture.value) for picture in explorer._pictures.values()) / 1024:.0f} KiB of pictures")


if __name__ == "__main__":
    main()
