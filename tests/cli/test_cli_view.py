"""``view`` writes one page that needs nothing else, with the pictures and scores of each method."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockkit.blockwise.memory import measure_peak
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.cli import main
from blockkit.cli.methods import FEW
from blockkit.data.scan import Scan
from blockkit.metrics import psnr
from blockkit.physics.sense import Encoding
from blockkit.show import report
from tests.cli.small import make_scan, make_weights, said, written


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1][0] in ("td", "th"):
            self.cells[-1] += data.strip()


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan()


@pytest.fixture
def files(scan: Scan, tmp_path: Path) -> Path:
    scan.save(tmp_path / "scan.h5")
    make_weights(tmp_path / "weights.safetensors")
    return tmp_path


def test_the_page_shows_every_method_and_fetches_and_runs_nothing(files: Path, scan: Scan) -> None:
    name = files / "<b>&scan.h5"
    (files / "scan.h5").rename(name)
    options = ["--weights", str(files / "weights.safetensors"), "--n-iterations", "3", "--device", "cpu"]
    assert main(["view", str(name), "-o", str(files / "page.html"), *options]) == 0
    text = (files / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in page.tags}
    assert "http" not in text
    assert "url(" not in text
    assert "&lt;b&gt;&amp;scan.h5" in text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    for picture in pictures:
        head, _, data = str(picture["src"]).partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert "gridding, CS, MBDL, reference" in str(picture["alt"])
    rows = [page.cells[i : i + 7] for i in range(0, len(page.cells), 7)]
    assert [row[0] for row in rows] == ["method", "gridding", "CS", "MBDL"]
    assert [row[3] for row in rows[1:]] == ["predicted", "counted", "predicted"]
    A = Encoding(scan.trajectory, scan.maps)
    assert rows[1][4] == f"{psnr(A.adjoint(A.dcf * scan.kspace), scan.reference):.1f}"
    assert "Not for clinical use" in text


def test_without_a_reference_there_are_no_scores_and_the_page_says_so(files: Path, scan: Scan) -> None:
    replace(scan, reference=None).save(files / "scan.h5")
    assert main(["view", str(files / "scan.h5"), "-o", str(files / "page.html"), "--methods", "gridding"]) == 0
    text = (files / "page.html").read_text(encoding="utf-8")
    assert "no reference" in text
    assert "PSNR" not in text


def test_predicted_bytes_are_those_that_are_counted(files: Path, scan: Scan) -> None:
    assert main(["view", str(files / "scan.h5"), "-o", str(files / "page.html"), "--methods", "gridding"]) == 0
    A = Encoding(scan.trajectory, scan.maps)
    A.adjoint(A.dcf * scan.kspace)
    with measure_peak() as peak:
        A.adjoint(A.dcf * scan.kspace)
    assert f"<td>{peak.bytes / 2**30:.3g}</td><td>predicted</td>" in (files / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-o", "page.txt"], "ends in .html"),
        (["--methods", "gridding", "--weights", "weights.safetensors"], "belongs to --method mbdl"),
        (["--methods", "mbdl", "--n-iterations", "3"], "belongs to --method cs"),
        (["--weights", "scan.h5"], "scan.h5"),
    ],
)
def test_what_does_not_fit_is_one_message_and_no_page(
    options: list[str],
    expected: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    assert main(["view", "scan.h5", "-o", "page.html", *options]) == 2
    assert expected in said(capsys)
    assert written(files) == {"scan.h5", "weights.safetensors"}


def test_a_page_that_cannot_be_finished_leaves_the_old_one(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "page.html").write_text("old")

    def fail(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text.encode()[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    assert main(["view", str(files / "scan.h5"), "-o", str(files / "page.html"), "--methods", "gridding"]) == 2
    assert "No space left" in said(capsys)
    assert (files / "page.html").read_bytes() == b"old"
    assert written(files) == {"scan.h5", "weights.safetensors", "page.html"}


def test_an_image_of_zeros_is_scored_without_failing(files: Path, scan: Scan) -> None:
    dark = replace(scan, reference=torch.zeros_like(scan.reference))
    result = report.Result(torch.zeros_like(scan.reference), 1.0, 2**30, predicted=True)
    report.write_report(files / "page.html", dark, {"zero": result}, title="dark")
    cells = re.findall("<td>(.*?)</td>", (files / "page.html").read_text(encoding="utf-8"))
    assert cells[:4] == ["zero", "1.0", "1", "predicted"]


def test_compressed_sensing_is_run_once_in_full_and_a_few_iterations_more_for_its_memory(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def noted(A: Encoding, kspace: Tensor, *, progress: bool, **options: int) -> Tensor:
        runs.append((progress, options.get("n_iterations")))
        return compressed_sensing(A, kspace, progress=False, **options)

    monkeypatch.setattr("blockkit.cli.methods.compressed_sensing", noted)
    command = ["view", str(files / "scan.h5"), "-o", str(files / "page.html"), "--methods", "cs"]
    assert main([*command, "--n-iterations", "20"]) == 0
    assert runs[0] == (True, 20)
    assert set(runs[1:]) == {(False, 3)}


def test_the_memory_of_compressed_sensing_is_that_of_its_first_iterations(scan: Scan) -> None:
    A = scan.encoding()
    peaks = []
    for n_iterations in (2, FEW, 25):  # the first builds what the others find
        with measure_peak() as peak:
            compressed_sensing(A, scan.kspace, n_iterations=n_iterations, tolerance=0)
        peaks.append(peak.bytes)
    assert peaks[1] == peaks[2]
