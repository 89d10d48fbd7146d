"""The command line writes the image or says in one line what is wrong."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.cli import main
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.raw import RawScan
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl import room, unrolled
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, save_weights, write_tensors
from blockkit.physics.sense import Encoding
from tests.mbdl.small_scans import make_scan as long_scan

SHAPE = (10, 12, 8)
COMMANDS = ("info", "plan", "recon", "view", "train")


@pytest.fixture(scope="module")
def scan() -> Scan:
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, 2 * n) for n in SHAPE), indexing="ij")
    volume = ((z / 0.7) ** 2 + (y / 0.6) ** 2 + (x / 0.8) ** 2 < 1).to(torch.complex64) * (1 + 0.5j)
    return simulate_scan(volume, SHAPE, n_coils=3, n_spokes=60, noise=0.01, seed=1)


@pytest.fixture
def scan_file(scan: Scan, tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    scan.save(path)
    return path


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(UnrolledNetwork(ResidualCNN(4, 2), 2), path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one message on stderr of a command that failed."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("blockkit: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def load_image(path: Path) -> np.ndarray:
    """The image of a NIfTI file as (z, y, x)."""
    return np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0)


def assert_same(image: np.ndarray, expected: torch.Tensor) -> None:
    difference = np.abs(image) - expected.abs().numpy()
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(expected.numpy())


def test_gridding_writes_the_gridding_reconstruction(scan: Scan, scan_file: Path) -> None:
    output = scan_file.with_name("image.nii.gz")
    assert main(["recon", str(scan_file), "--method", "gridding", "--device", "cpu", "-o", str(output)]) == 0
    A = Encoding(scan.trajectory, scan.maps)
    assert_same(load_image(output), A.adjoint(A.dcf * scan.kspace))
    assert written(output.parent) == {"scan.h5", "image.nii.gz"}


def test_the_voxel_size_reaches_the_image(scan: Scan, scan_file: Path) -> None:
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "gridding", "-o", str(output)]) == 0
    assert nibabel.load(output).header.get_zooms()[:3] == pytest.approx(scan.voxel_size[::-1])


def test_compressed_sensing_takes_its_options(scan: Scan, scan_file: Path) -> None:
    output = scan_file.with_name("image.nii.gz")
    options = ["--reg-weight", "0.01", "--n-iterations", "7"]
    assert main(["recon", str(scan_file), "--method", "cs", *options, "--device", "cpu", "-o", str(output)]) == 0
    A = Encoding(scan.trajectory, scan.maps)
    assert_same(load_image(output), compressed_sensing(A, scan.kspace, reg_weight=0.01, n_iterations=7))


@pytest.mark.parametrize("block_shape", [(64, 64, 64), (4, 6, 8)])
def test_mbdl_writes_the_image_of_the_model_whatever_the_blocks(
    block_shape: tuple[int, int, int], scan: Scan, scan_file: Path, weights_file: Path
) -> None:
    output = scan_file.with_name("image.nii.gz")
    options = ["--weights", str(weights_file), "--block-shape", *map(str, block_shape), "--device", "cpu"]
    assert main(["recon", str(scan_file), "--method", "mbdl", *options, "-o", str(output)]) == 0
    with torch.no_grad():
        expected = load_model(weights_file)(Encoding(scan.trajectory, scan.maps), scan.kspace)
    assert_same(load_image(output), expected)


def test_automatic_blocks_get_smaller_when_memory_runs_out_and_one_of_ones_own_is_kept_and_named(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, apply = long_scan(0, (8, 8, 64)), unrolled.apply_blockwise
    scan.save(weights_file.with_name("long.h5"))

    def fail_if_large(network, x, block_shape, **options):  # type: ignore[no-untyped-def]
        if prod(block_shape) > 2500 and not isinstance(x, FakeTensor):
            raise torch.OutOfMemoryError("no more")
        return apply(network, x, block_shape, **options)

    monkeypatch.setattr(unrolled, "apply_blockwise", fail_if_large)
    output = weights_file.with_name("image.nii.gz")
    command = ["recon", str(weights_file.with_name("long.h5")), "--weights", str(weights_file), "-o", str(output)]
    assert main(command) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("blockkit: Out of memory by blocks of (64, 64, 64) (no more). With --block-shape 8 8 32 ")
    assert "Or write --block-shape auto, and smaller" in message
    assert not output.exists()
    with pytest.warns(RuntimeWarning, match=r"Out of memory by blocks of \(8, 8, 64\): going on by"):
        assert main([*command, "--block-shape", "auto"]) == 0
    with torch.no_grad():
        expected = load_model(weights_file)(Encoding(scan.trajectory, scan.maps), scan.kspace)
    assert_same(load_image(output), expected)


def test_an_old_image_is_replaced(scan_file: Path) -> None:
    output = scan_file.with_name("image.nii")
    output.write_bytes(b"old")
    assert main(["recon", str(scan_file), "--method", "gridding", "-o", str(output)]) == 0
    assert load_image(output).shape == SHAPE


def test_info_prints_shapes_units_and_sizes(scan: Scan, scan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scan_file)]) == 0
    text = capsys.readouterr().out
    for part in (str(tuple(scan.kspace.shape)), "(3, 10, 12, 8)", "cycles/FOV", "MiB", "mm", "complex64"):
        assert part in text
    assert "missing" not in text


def test_info_says_that_the_reference_is_missing(
    scan: Scan, scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(scan, reference=None).save(scan_file)
    assert main(["info", str(scan_file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "missing" in line]
    assert "reference" in line


def test_info_prints_what_a_raw_file_holds_and_what_is_missing(
    scan: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_ismrmrd(tmp_path / "raw.h5", RawScan(scan.kspace, scan.trajectory, scan.image_shape, scan.voxel_size))
    assert main(["info", str(tmp_path / "raw.h5")]) == 0
    text = capsys.readouterr().out
    for part in ("ISMRMRD", "3 coils", "noise       missing", "maps        missing", "bk.load_ismrmrd("):
        assert part in text


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_a_nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][...]
        kspace.reshape(-1)[5] = np.nan
        file["kspace"][...] = kspace


def shorten_the_trajectory(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        trajectory = file["trajectory"][:-1]
        del file["trajectory"]
        file["trajectory"] = trajectory


def take_the_kspace(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["kspace"]


def write_something_else(path: Path) -> None:
    path.write_text("This is no scan.\n")


@pytest.mark.parametrize(
    "spoil", [Path.unlink, cut_short, put_a_nan, shorten_the_trajectory, take_the_kspace, write_something_else]
)
@pytest.mark.parametrize("command", ["info", "recon"])
def test_a_scan_that_cannot_be_used_is_one_message_and_writes_nothing(
    command: str, spoil: object, scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(scan_file)  # type: ignore[operator]
    before = written(scan_file.parent)
    output = ["--method", "gridding", "-o", str(scan_file.with_name("image.nii.gz"))] if command == "recon" else []
    assert main([command, str(scan_file), *output]) == 2
    assert len(said(capsys)) > 40
    assert written(scan_file.parent) == before


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("image.png", "ends in .nii or .nii.gz"),
        (".nii.gz", "ends in .nii or .nii.gz"),
        ("nowhere/image.nii.gz", "no folder"),
        ("folder.nii", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_scan_is_read(
    output: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.nii").mkdir()
    no_scan = tmp_path / "not_there.h5"
    assert main(["recon", str(no_scan), "--method", "gridding", "-o", str(tmp_path / output)]) == 2
    assert expected in said(capsys)
    assert written(tmp_path) == {"folder.nii"}


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
@pytest.mark.parametrize("kind", ["scan", "weights"])
def test_an_output_that_is_an_input_is_refused_and_the_input_stays(
    kind: str, link: object, scan_file: Path, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = (scan_file if kind == "scan" else weights_file).with_name("used.nii")
    (scan_file if kind == "scan" else weights_file).rename(used)
    options = ["--method", "gridding"] if kind == "scan" else ["--method", "mbdl", "--weights", str(used)]
    output, before = used, used.read_bytes()
    if link is not None:
        output = used.with_name("image.nii")
        link(used, output)  # type: ignore[operator]
    names = written(used.parent)
    assert main(["recon", str(used if kind == "scan" else scan_file), *options, "-o", str(output)]) == 2
    assert "is the input" in said(capsys)
    assert used.read_bytes() == before
    assert output.samefile(used)
    assert written(used.parent) == names


def test_a_folder_that_takes_no_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # /proc takes no files from anybody; elsewhere a folder without the right to write does.
    folder = Path("/proc")
    if not folder.is_dir():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    assert main(["recon", str(tmp_path / "scan.h5"), "--method", "cs", "-o", str(folder / "image.nii")]) == 2
    assert "Nothing can be written" in said(capsys)


def test_a_failed_write_leaves_the_old_image(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = scan_file.with_name("image.nii.gz")
    output.write_bytes(b"old")

    def fail(image: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nibabel, "save", fail)
    monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", fail)
    assert main(["recon", str(scan_file), "--method", "gridding", "-o", str(output)]) == 2
    assert "No space left" in said(capsys)
    assert output.read_bytes() == b"old"
    assert written(output.parent) == {"scan.h5", "image.nii.gz"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "cs", "--weights", "w.safetensors"], "--weights belongs to --method mbdl"),
        (["--method", "gridding", "--reg-weight", "0.1"], "--reg-weight belongs to --method cs"),
        (["--method", "mbdl", "--n-iterations", "5"], "--n-iterations belongs to --method cs"),
        (["--method", "gridding", "--block-shape", "8", "8", "8"], "--block-shape belongs to --method mbdl"),
        (["--method", "cs", "--reg-weight", "-1"], "reg_weight"),
        (["--method", "cs", "--n-iterations", "0"], "n_iterations"),
        (["--method", "mbdl", "--weights", "not_there.safetensors"], "not_there.safetensors"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    options: list[str], expected: str, scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recon", str(scan_file), *options, "-o", str(scan_file.with_name("image.nii"))]) == 2
    assert expected in said(capsys)
    assert written(scan_file.parent) == {"scan.h5"}


@pytest.mark.parametrize("block_shape", [(0, 8, 8), (8, -2, 8)])
def test_a_block_without_voxels_is_refused(
    block_shape: tuple[int, int, int], scan_file: Path, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", str(weights_file), "--block-shape", *map(str, block_shape)]
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "mbdl", *options, "-o", str(output)]) == 2
    assert "block_shape" in said(capsys)
    assert not output.exists()


def test_a_weights_file_cut_short_is_refused(
    scan_file: Path, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(weights_file)
    output = scan_file.with_name("image.nii")
    options = ["--weights", str(weights_file), "-o", str(output)]
    assert main(["recon", str(scan_file), "--method", "mbdl", *options]) == 2
    assert weights_file.name in said(capsys)
    assert not output.exists()


def test_a_weights_file_with_a_damaged_description_is_one_message(
    scan_file: Path, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tensors(weights_file, {"a": torch.zeros(1)}, {"format": "blockkit-model-1", "model": "{}"})
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "mbdl", "--weights", str(weights_file), "-o", str(output)]) == 2
    assert weights_file.name in said(capsys)
    assert not output.exists()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["recon"],
        ["recon", "scan.h5", "--method", "mbdl"],
        ["train", "folder"],
        ["plan", "scan.h5"],
        ["plan", "scan.h5", "--budget-gib", "much"],
        ["recon", "scan.h5", "--method", "magic", "-o", "image.nii"],
        ["recon", "scan.h5", "--method", "cs", "--reg-weight", "much", "-o", "image.nii"],
        ["recon", "scan.h5", "--method", "cs", "--reg", "1", "-o", "image.nii"],
        ["recon", "scan.h5", "--method", "mbdl", "--block-shape", "8", "8", "-o", "image.nii"],
        ["recon", "--block-shape", "8", "8", "8", "scan.h5", "-o", "image.nii"],
        ["train", "folder", "-o", "weights.safetensors", "--block-shape", "automatic"],
        ["view", "scan.h5"],
    ],
)
def test_a_command_that_is_not_understood_ends_with_status_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "blockkit" in captured.err


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_the_help_fits_one_screen(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 24
    assert max(map(len, text.splitlines())) <= 100


def test_running_out_of_memory_is_one_message(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Encoding, "adjoint", fail)
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "gridding", "-o", str(output)]) == 2
    assert "out of memory" in said(capsys)
    assert not output.exists()


def test_what_will_not_fit_is_refused_unless_told_otherwise(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 10**4)
    output = scan_file.with_name("image.nii")
    command = ["recon", str(scan_file), "--method", "mbdl", "-o", str(output)]
    assert main(command) == 2
    assert "GiB are free on cpu" in (message := said(capsys))
    assert "To start all the same: --ignore-memory." in message
    assert not output.exists()
    assert main([*command, "--ignore-memory"]) == 0
    assert output.exists()


def test_apples_mps_falls_back_to_the_cpu_and_says_so(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "gridding", "-o", str(output)]) == 0
    assert "MPS" in capsys.readouterr().err
    assert output.exists()


def test_a_gpu_that_is_not_there_is_refused(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = scan_file.with_name("image.nii")
    assert main(["recon", str(scan_file), "--method", "gridding", "--device", "cuda", "-o", str(output)]) == 2
    assert "no GPU" in said(capsys)


def test_the_command_runs_from_the_shell(scan_file: Path) -> None:
    output = scan_file.with_name("image.nii.gz")
    command = [sys.executable, "-m", "blockkit", "recon", scan_file.name, "--method", "gridding", "-o", output.name]
    done = subprocess.run(command, cwd=scan_file.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.name in done.stdout
    assert output.exists()


def test_a_path_that_stdout_cannot_encode_is_escaped(scan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_file = scan_file.rename(scan_file.with_name("肺.h5"))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252"))
    assert main(["info", str(scan_file)]) == 0
    sys.stdout.flush()
    assert rb"\u80ba.h5" in shown.getvalue()
