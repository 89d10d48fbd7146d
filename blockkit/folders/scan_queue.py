"""The scans of a folder that are to be reconstructed: which are done, which are taken, and what came of each."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blockkit.data.files import counted, printable
from blockkit.folders.claims import Claims
from blockkit.folders.image_records import Place, differences, has_image, made_from, read_record, write_record
from blockkit.folders.one_scan import Attempt

NAMED = 5  # scans at most in a message


@dataclass(frozen=True)
class ScanResult:
    """What came of a scan.

    Attributes
    ----------
    scan
        Its file.
    name
        Its path below the folder.
    image
        The file of its image; None if it failed.
    seconds
        What it took, with reading and writing; None if it was done elsewhere.
    problem
        Why it failed; None if it did not.
    n_ended, n_scans
        Scans of the folder that are done or have failed by now, and all of them.
    """

    scan: Path
    name: str
    image: Path | None
    seconds: float | None
    problem: str | None
    n_ended: int
    n_scans: int


@dataclass
class FolderResult:
    """What came of the scans of a folder; ``print`` it for a summary.

    Attributes
    ----------
    images
        Scan to image, of all that are done, now or before.
    problems
        Scan to the reason why it has no image.
    n_new
        Images that this call made.
    """

    output: Path
    images: dict[Path, Path] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)
    n_new: int = 0

    def __str__(self) -> str:
        """Return a line, and one more for each problem."""
        n_done, n_bad = len(self.images), len(self.problems)
        has = "has its image" if n_done == 1 else "have their images"
        head = f"{n_done} of {counted(n_done + n_bad, 'scan')} {has} in '{printable(self.output)}': {self.n_new} new"
        if not n_bad:
            return head
        lines = [f"  {printable(scan)}: {problem}" for scan, problem in self.problems.items()]
        return "\n".join([head, f"{n_bad} failed; the same again tries {'it' if n_bad == 1 else 'them'} anew:", *lines])


def printed(one: ScanResult) -> None:
    """Print a line for a scan that ended."""
    said = f"failed: {one.problem}" if one.problem is not None else "done elsewhere"
    if one.problem is None and one.seconds is not None:
        said = f"{one.seconds:.1f} s"
    print(f"[{one.n_ended} of {one.n_scans}] {printable(one.name)}: {said}", flush=True)


class Queue:
    """The scans that are left, and the result so far.

    Parameters
    ----------
    output
        Folder of the images.
    places
        The scans, in the order in which they are taken.
    how
        What stands for method and loading in the records.
    claims
        Takes them.
    watch
        Told of each that ends.
    """

    def __init__(
        self,
        output: Path,
        places: list[Place],
        how: Mapping[str, object],
        claims: Claims,
        watch: Callable[[ScanResult], None],
    ) -> None:
        self.result = FolderResult(output)
        self.crowded: list[Place] = []  # which want all the memory
        self.is_last_try = False
        self._places, self._how, self._claims, self._watch = places, how, claims, watch
        self._left = list(places)
        self._taken: list[Place] = []
        self._failed_before: dict[str, dict[str, Any]] = {}
        self._elsewhere: set[str] = set()
        self._said: set[str] = set()

    @property
    def is_open(self) -> bool:
        """Whether a scan is neither done nor failed."""
        return len(self.result.images) + len(self.result.problems) < len(self._places)

    @property
    def n_left(self) -> int:
        """How many scans are not known to be done, and not taken."""
        return len(self._left)

    def begin(self, *, again: bool) -> None:
        """Find out what is done; raise ValueError if images were made otherwise, unless they are to be made anew."""
        self.result.output.mkdir(exist_ok=True)
        other: list[str] = []
        interrupted: list[Place] = []
        for place in self._places:
            record = read_record(place)
            now = self._made_from(place)
            if "problem" in record:
                self._failed_before[place.name] = record
            elif has_image(place, record):
                unlike = differences(record.get("made_from", {}), now)
                if not unlike:
                    self._left.remove(place)
                    self.result.images[place.scan] = place.image
                else:
                    other.append(f"{printable(place.name)} ({unlike})")
            if self._claims.remove_if_free(place.claim):
                interrupted.append(place)
                shutil.rmtree(place.under_way, ignore_errors=True)
        if other and not again:
            more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
            raise ValueError(
                f"'{self.result.output}' has {counted(len(other), 'image')} made from something else: "
                f"{'; '.join(other[:NAMED])}{more}. Write them into another folder, or make them anew by again=True."
            )
        last = {id(place) for place in interrupted}  # what may have ended the process is not to end it first
        self._left.sort(key=lambda place: id(place) in last)

    def take(self) -> Place | None:
        """Return a scan that is taken now; None if none is left that is not at work elsewhere."""
        for place in list(self._left):
            if self._has_ended_elsewhere(place):
                continue
            if not self._claims.take(place.claim):
                self._elsewhere.add(place.name)
                continue
            if self._has_ended_elsewhere(place):  # between the look and the claim
                self._claims.give_back(place.claim)
                continue
            self._left.remove(place)
            self._taken.append(place)
            return place
        return None

    def _has_ended_elsewhere(self, place: Place) -> bool:
        """Tell whether another process has ended a scan since this one began, and take over what it found."""
        record = read_record(place)
        if record.get("made_from") != self._made_from(place):
            return False
        if has_image(place, record):
            self._end(place, None, None)
            return True
        if "problem" in record and record != self._failed_before.get(place.name):
            self._end(place, None, str(record["problem"]))
            return True
        return False

    def finish(self, place: Place, attempt: Attempt, *, crowded: bool) -> None:
        """Take what came of a scan; ``crowded``: if it lacked room, others may have had it."""
        last, self.is_last_try = self.is_last_try, False
        if attempt.lacked_room and crowded and not last:
            self.crowded.append(place)
            return
        if attempt.problem is not None:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            content = {"made_from": self._made_from(place), "problem": attempt.problem, "at": at}
            record = read_record(place)
            if not (has_image(place, record) and record.get("made_from") == content["made_from"]):
                write_record(place, content)
        else:
            self.result.n_new += 1
        shutil.rmtree(place.under_way, ignore_errors=True)
        self._taken.remove(place)
        self._claims.give_back(place.claim)
        self._end(place, attempt.seconds, attempt.problem)

    def _end(self, place: Place, seconds: float | None, problem: str | None) -> None:
        if place in self._left:
            self._left.remove(place)
        if problem is None:
            self.result.images[place.scan] = place.image
        else:
            self.result.problems[place.scan] = problem
        n_ended = len(self.result.images) + len(self.result.problems)
        image = place.image if problem is None else None
        self._watch(ScanResult(place.scan, place.name, image, seconds, problem, n_ended, len(self._places)))

    def say_who_has_the_rest(self) -> None:
        """Say once for each scan which other process has it, while this one waits."""
        for place in self._left:
            owner = self._claims.owner(place.claim)
            if place.name in self._elsewhere - self._said and owner is not None:
                self._said.add(place.name)
                print(f"Waiting for {printable(place.name)}: {owner} has it.", file=sys.stderr, flush=True)

    def clean_up(self) -> None:
        """Remove what is left of scans under way."""
        for place in self._taken:
            shutil.rmtree(place.under_way, ignore_errors=True)

    def _made_from(self, place: Place) -> dict[str, object]:
        try:
            return made_from(place, self._how)
        except OSError:  # gone since it was found, or not to be read: to say so is up to the attempt
            return {"scan": {}, **self._how}
