"""The viewer's server: who is let in, what may be dropped, what becomes of it, and that nothing is left."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from result_folders import head, make_results
from test_io_dicom import DX, base, save
from test_results_volume_page import SHAPE as VOLUME_SHAPE
from test_results_volume_page import embedded, oblique
from test_results_volume_page import make_results as make_volume
from thorad.cli import app
from thorad.io.scans import Scan
from thorad.io.text import printable
from thorad.records import pixels_sha256
from thorad.results.folder import ResultFolder
from thorad.viewer import pages
from thorad.viewer.guard import LOCK, private_folder
from viewer_server import Client, Viewer

SAMPLE = Path(__file__).parents[1] / "src" / "thorad" / "assets" / "samples" / "head.png"


def picture(seed: int = 0, shape: tuple[int, int] = (40, 32)) -> bytes:
    """A PNG of a drawn head."""
    pixels = np.rint(255 * head(shape, np.random.default_rng(seed))).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two result folders."""
    folder = tmp_path_factory.mktemp("runs")
    make_results(folder / "pictures", 3, steps=2, names=["<b>x</b>"], failed=["bad"])
    make_results(folder / "volumes", 1, slices=3)
    (folder / "other").mkdir()
    return folder


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, folders: Path) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("viewer")
    with Viewer(folder / "temporary", folders, "--model", tiny_model, "--out", folder / "kept") as viewer:
        yield viewer
    assert list(viewer.temporary.iterdir()) == []


@pytest.fixture
def client(viewer: Viewer) -> Client:
    return viewer.client()


# ------------------------------------------------------------------------------------------------ who is let in


@pytest.mark.parametrize(
    "path",
    ["/", "/?token=wrong", "/static/shell.js", "/api/state", "/results/folder-1", "/none"],
)
def test_nothing_without_the_token(viewer: Viewer, path: str) -> None:
    status, headers, content = Client(viewer.port).ask("GET", path)
    assert status == 403
    assert b"token" in content
    assert b"<" not in content
    assert "set-cookie" not in headers
    wrong = Client(viewer.port)
    wrong.cookie = f"thorad-view-{viewer.port}=" + "x" * len(viewer.token)
    assert wrong.ask("GET", path)[0] == 403


def test_the_token_opens_a_session_that_scripts_and_other_sites_cannot_use(viewer: Viewer) -> None:
    _, headers, _ = Client(viewer.port).ask("GET", f"/?token={viewer.token}")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    # Elsewhere the token opens nothing: addresses of files should not hold it.
    assert Client(viewer.port).ask("GET", f"/api/state?token={viewer.token}")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "thorad.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.thorad.example:{port}"},
        {"Origin": "https://thorad.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_pages_elsewhere_get_nothing_and_start_nothing(viewer: Viewer, client: Client, headers: dict[str, str]) -> None:
    foreign = {name: value.format(port=viewer.port) for name, value in headers.items()}
    before = client.json("GET", "/api/state")[1]["jobs"]
    for method, path in [("GET", "/"), ("GET", "/api/state"), ("POST", "/api/jobs"), ("DELETE", "/api/jobs/1")]:
        status, _, content = client.ask(method, path, b"{}" if method == "POST" else None, foreign)
        assert status == 403, (method, path)
        assert b"its own" in content
    assert client.json("GET", "/api/state")[1]["jobs"] == before
    own = {"Origin": f"http://127.0.0.1:{viewer.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("GET", "/api/state", None, own)[0] == 200


@pytest.mark.parametrize("path", ["/", "/static/gallery.js", "/api/state", "/results/folder-1", "/none", "/api/jobs"])
def test_every_answer_keeps_to_itself(client: Client, path: str) -> None:
    _, headers, _ = client.ask("GET", path)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_pages_ask_for_nothing_elsewhere(client: Client) -> None:
    for path in ("/", "/results/folder-1", "/static/viewer.css", "/static/start.js", "/static/job.js"):
        content = client.ask("GET", path)[2].decode()
        assert "//" not in content.replace("// ", "").replace("https://www.w3.org", ""), path
        assert "<script>" not in content
        assert "style=" not in content


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't answer on all of 127.0.0.0/8")
def test_listens_on_one_address_only(viewer: Viewer) -> None:
    with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
        asking.connect(("127.0.0.2", viewer.port))


@pytest.mark.parametrize(
    "name", ["..%2f..%2fcli.py", "%2e%2e", "start.html", "__init__.py", "..%5cshell.js", "shell.js%00"]
)
def test_only_listed_files_are_served(client: Client, name: str) -> None:
    assert client.ask("GET", f"/static/{name}")[0] == 404


def test_the_server_never_imports_torch() -> None:
    code = "import sys, thorad.viewer.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ what is dropped


def test_a_volume_becomes_a_page_of_three_planes(viewer: Viewer, client: Client, shared_data: Path) -> None:
    head_file = shared_data / "volumes" / "colin27_t1_1mm.nii.gz"
    number = client.drop([("Jane Doe.nii.gz", head_file.read_bytes())], model="brain-t1-compact")
    job = client.wait(number)
    assert job["state"] == "done", job["message"]
    index = client.index(f"job-{number}")[1]
    (case,) = index["cases"]
    name = case["key"]
    assert case["page"] == f"/results/job-{number}/planes/{name}"
    status, headers, page = client.ask("GET", f"/results/job-{number}/planes/{name}")
    assert status == 200
    assert headers["content-disposition"].startswith("attachment")
    assert b"Content-Security-Policy" in page
    assert len(page) > 3_000_000, "the scan is in it, though its file is gone"
    assert b"Jane" not in page
    assert client.ask("GET", f"/results/job-{number}/planes/none")[0] >= 400
    assert client.ask("GET", "/results/folder-1/planes/none")[0] >= 400


def test_the_page_of_three_planes_knows_the_scan_that_was_dropped(tmp_path: Path) -> None:
    """It is handed on as another file, of other numbers: integers with a scale are floats there."""
    from thorad.viewer import worker

    results = tmp_path / "results"
    make_volume(results, oblique(20))
    stored = np.rint(1000 * np.random.default_rng(1).random(VOLUME_SHAPE)).astype(np.int16)
    image = nibabel.Nifti1Image(stored, oblique(20))
    image.header.set_slope_inter(0.123, -7)
    nibabel.save(image, tmp_path / "dropped.nii.gz")
    scan = Scan("head", tmp_path / "dropped.nii.gz", "file 1 of an upload")
    case = results / "cases" / "head" / "case.json"
    digest = pixels_sha256(scan.read().voxels)
    case.write_text(json.dumps(json.loads(case.read_text()) | {"source": scan.source, "pixels_sha256": digest}))
    worker._write_planes(scan, results)
    assert embedded(case.parent / "planes.html", "scan") is not None


def test_a_picture_becomes_a_result_to_look_at_and_save(viewer: Viewer, client: Client, tmp_path: Path) -> None:
    number = client.drop([("Jane Doe 1970.png", picture())], "anoddpm", "simplex")
    job = client.wait(number)
    assert job["state"] == "done", job["message"]
    assert job["title"] == "Jane Doe 1970.png"
    # The restoration as it happened: the scan first, then the estimates from noise to image.
    assert [sorted(event) for event in job["events"][:2]] == [
        ["case", "key", "scan"],
        ["case", "clean", "key", "overlay", "t"],
    ]
    assert job["events"][-1]["restored"]
    times = [event["t"] for event in job["events"][1:-1]]
    assert times == sorted(times, reverse=True)
    status, index = client.index(f"job-{number}")
    assert status == 200
    (case,) = index["cases"]
    assert case["name"] == "Jane Doe 1970.png"
    assert (case["width"], case["height"]) == (32, 40)
    assert b"AnoDDPM" in client.ask("GET", f"/results/job-{number}")[2]
    _, (pictures,) = client.json("GET", f"/results/job-{number}/cases/{case['key']}")
    assert len(pictures["steps"]) == case["steps"] > 0
    assert pictures["maximum"] > 0
    assert client.ask("GET", f"/results/job-{number}/thumbnail")[2].startswith(b"\x89PNG")
    _, headers, report = client.ask("GET", f"/results/job-{number}/report")
    assert headers["content-disposition"].startswith("attachment")
    assert b"Jane" not in report
    _, _, packed = client.ask("GET", f"/results/job-{number}/save")
    with zipfile.ZipFile(io.BytesIO(packed)) as files:
        files.extractall(tmp_path)
    saved = next(tmp_path.iterdir())
    assert json.loads((saved / "run.json").read_text())["status"] == "finished"
    assert json.loads((saved / "cases" / case["key"] / "case.json").read_text())["score"] == case["score"]
    # Neither the user's name of the file nor a path of this machine is in any file that is kept.
    for file in [file for file in saved.rglob("*") if file.is_file()]:
        assert b"Jane" not in file.read_bytes()
        assert str(viewer.temporary).encode() not in file.read_bytes()
    # What was dropped is gone, and so are the packed files; --out has the same results.
    assert sorted(path.name for path in viewer.folder.iterdir()) == ["files", LOCK, "results"]
    assert viewer.left("files/*") == []
    kept = sorted((viewer.temporary.parent / "kept").iterdir())[-1]
    assert {file.relative_to(kept) for file in kept.rglob("*")} == {
        file.relative_to(saved) for file in saved.rglob("*")
    }
    assert client.json("DELETE", f"/api/jobs/{number}")[0] == 200
    assert client.index(f"job-{number}")[0] == 404
    assert not (viewer.folder / "results" / str(number)).exists()


def test_dicom_is_told_by_its_content_and_saved_without_the_patient(
    viewer: Viewer, client: Client, tmp_path: Path
) -> None:
    pixels = np.rint(1000 * head((40, 32), np.random.default_rng(3))).astype(np.uint16)
    content = save(base(DX, "DX", pixels, PixelSpacing=[0.2, 0.2]), tmp_path / "IM0001").read_bytes()
    assert b"Mustermann" in content
    job = client.wait(client.drop([("Mustermann/IM0001", content)]))
    assert job["state"] == "done", job
    _, _, packed = client.ask("GET", f"/results/job-{job['number']}/save")
    with zipfile.ZipFile(io.BytesIO(packed)) as files:
        assert any(name.startswith("thorad-job") and "/cases/dx-" in name for name in files.namelist())
        for name in files.namelist():
            assert "Mustermann" not in name
            if "/dicom/" not in name:  # these are for the PACS, which needs the name
                assert b"Mustermann" not in files.read(name)


def test_what_the_model_cannot_judge_is_told_apart_and_run_only_when_asked(
    viewer: Viewer, client: Client, tmp_path: Path
) -> None:
    pixels = np.rint(1000 * head((40, 32), np.random.default_rng(3))).astype(np.uint16)
    content = save(base(DX, "DX", pixels, PixelSpacing=[0.2, 0.2]), tmp_path / "IM0001").read_bytes()
    number = client.drop([("hand\u202e.dcm", content)], "zscore", None, model="brain-t1-compact")
    job = client.wait(number)
    assert (job["state"], job["done"], job["failures"], job["can_be_forced"]) == ("done", 0, [], True)
    assert job["title"] == r"hand\u202e.dcm"
    (refused,) = job["refused"]
    index = client.index(f"job-{number}")[1]
    (case,) = index["cases"]
    assert (case["status"], case["message"], case["score"]) == ("refused", refused["message"], None)
    assert client.ask("GET", f"/results/job-{number}/thumbnail")[0] >= 400
    assert len(list((viewer.folder / "files").iterdir())) == 1, "kept until it is forced, or removed"

    status, forced = client.json("POST", f"/api/jobs/{number}/force")
    assert status == 201
    assert client.json("POST", f"/api/jobs/{number}/force")[0] == 400
    job = client.wait(forced["number"])
    assert (job["state"], job["done"], job["refused"], job["can_be_forced"]) == ("done", 1, [], False)
    (case,) = client.index(f"job-{forced['number']}")[1]["cases"]
    assert (case["status"], case["forced"]) == ("warned", True)
    assert case["message"].startswith(f"forced: {refused['message']}")
    assert viewer.left("files/*") == []
    for each in (number, forced["number"]):
        assert client.json("DELETE", f"/api/jobs/{each}")[0] == 200


def test_links_in_a_result_folder_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "key").write_text("secret")
    table = make_results(tmp_path / "results", 1)
    case = tmp_path / "results" / "cases" / "case-000"
    (case / "planes.html").symlink_to(tmp_path / "secret")
    (case / "overlay.png").unlink()
    (case / "overlay.png").symlink_to(table)
    (tmp_path / "results" / "linked").symlink_to(tmp_path / "elsewhere")
    with Viewer(tmp_path / "temporary", tmp_path / "results") as viewer:
        client = viewer.client()
        assert client.index("folder-1")[0] == 200
        _, _, packed = client.ask("GET", "/results/folder-1/save")
        with zipfile.ZipFile(io.BytesIO(packed)) as files:
            names = {name.rpartition("/")[2] for name in files.namelist()}
        assert {"run.json", "case.json", "scan.png"} <= names
        assert names.isdisjoint({"planes.html", "overlay.png", "key"})
        assert client.ask("GET", "/results/folder-1/thumbnail")[0] == 404
        assert b"secret" not in client.ask("GET", "/results/folder-1/planes/case-000")[2]


def test_a_bad_file_among_good_ones_is_told_and_the_others_are_done(client: Client) -> None:
    files = [("one.png", picture(1)), ("bad.png", b"no picture"), ("notes.txt", b"x"), ("two.png", picture(2))]
    job = client.wait(client.drop(files))
    assert (job["state"], job["done"], job["cases"]) == ("done", 2, 3)
    (failure,) = job["failures"]
    assert failure["case"] == "bad.png"
    assert "00001" not in failure["message"]
    index = client.index(f"job-{job['number']}")[1]
    assert {case["name"]: case["status"] for case in index["cases"]} == {
        "one.png": "ok",
        "two.png": "ok",
        "bad.png": "failed",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.html", b"<script>alert(1)</script>", "not an image|not a picture|PNG"),
        ("page.png", b"<script>alert(1)</script>", "not an image|not a picture|PNG"),
        ("scan.nii.gz", b"\x1f\x8b" + b"x" * 100, "damaged|unpack|gzip|not"),
        ("scan.dcm", b"x" * 200, "DICOM"),
        ("cases.csv", b"image\n" + str(SAMPLE).encode() + b"\n", "not an image|not a picture|PNG"),
    ],
)
def test_a_file_of_the_wrong_type_is_told_by_the_users_name(
    viewer: Viewer, client: Client, name: str, content: bytes, message: str
) -> None:
    job = client.wait(client.drop([(name, content)]))
    assert job["state"] == "failed"
    told = " ".join([job["message"], *(failure["case"] + ": " + failure["message"] for failure in job["failures"])])
    assert re.search(message, told), told
    assert name in told
    assert str(viewer.temporary) not in told
    assert viewer.left(f"results/{job['number']}") == []


def test_headers_without_their_voxels_are_refused(client: Client) -> None:
    status, answer = client.announce([("scan.mhd", 10)])
    assert status == 400
    assert "Save both in one file" in answer["message"]


def test_what_is_too_large_is_refused(viewer: Viewer, client: Client) -> None:
    status, answer = client.announce([("a.png", 2**29), ("b.png", 2**29 + 1)])
    assert status == 400
    assert "1074 MB" in answer["message"]
    assert client.announce([("a.png", 1)] * 5001)[0] == 400
    status, answer = client.announce([("x" * 2**21, 1)])
    assert status == 413
    assert client.announce([("a.png", 0)])[0] == 400
    assert client.announce([])[0] == 400
    # More than was announced, and less.
    for content in (b"x" * 2_000_000, b"x"):
        _, job = client.announce([("a.png", 1000)])
        status, answer = client.json("PUT", f"/api/jobs/{job['number']}/files/0", None)
        assert status == 400
        _, job = client.announce([("a.png", 1000)])
        try:
            status, _, _ = client.ask("PUT", f"/api/jobs/{job['number']}/files/0", content)
            assert status in (400, 413)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it doesn't listen to the rest
        found = client.wait(job["number"])
        assert found["state"] == "failed"
        assert "another size" in found["message"]
        assert viewer.left(f"files/{job['number']}") == []
    # It doesn't wait for all of it either.
    _, job = client.announce([("a.png", 1000)])
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=10) as sending:
        sending.sendall(
            f"PUT /api/jobs/{job['number']}/files/0 HTTP/1.1\r\nHost: 127.0.0.1:{viewer.port}\r\n"
            f"Cookie: {client.cookie}\r\nContent-Length: 1000000000000\r\n\r\n".encode()
            + b"x" * 2000
        )
        assert sending.recv(20).startswith(b"HTTP/1.1 413")
    # Waiting files count: together, not each by itself.
    _, first = client.announce([("a.png", 2**30)])
    assert client.announce([("a.png", 1)])[0] == 400
    assert client.json("DELETE", f"/api/jobs/{first['number']}")[0] == 200
    status, second = client.announce([("a.png", 1)])
    assert status == 201
    client.json("DELETE", f"/api/jobs/{second['number']}")


@pytest.mark.parametrize(
    "name",
    [
        *("../../../escaped.png", "/escaped.png", "..\\..\\escaped.png", "a\0b.png", "x" * 5000 + ".png"),
        *("", ".", "\ud800.png", "<img src=x onerror=alert(1)>.png", "CON", "~/escaped", "$(touch escaped).png"),
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_names_are_never_paths(viewer: Viewer, client: Client, name: str) -> None:
    before = {path for path in viewer.temporary.parent.rglob("*") if viewer.folder not in path.parents}
    content = picture()
    _, job = client.announce([(name, len(content))])
    number = job["number"]
    assert client.ask("PUT", f"/api/jobs/{number}/files/0", content)[0] == 200
    (stored,) = (viewer.folder / "files" / str(number)).iterdir()
    assert stored.name in ("00000.png", "00000")
    client.json("POST", f"/api/jobs/{number}/start")
    job = client.wait(number)
    assert job["state"] == "done", job
    assert job["title"] == printable(name)[:200]
    after = {path for path in viewer.temporary.parent.rglob("*") if viewer.folder not in path.parents}
    kept = viewer.temporary.parent / "kept"
    assert {path for path in after - before if kept not in path.parents} == set()


def test_nonsense_is_refused_and_the_server_lives(client: Client) -> None:
    good = {"files": [{"name": "a.png", "size": 1}], "model": "x", "method": "thor", "noise": None}
    for body in [
        *(b"", b"[]", b"{", b"null", b'{"files": 3}', b'{"files": [{"name": "a"}]}', b"[" * 100_000, b"\xff\xfe"),
        json.dumps(good).encode(),
        json.dumps({**good, "files": [{"name": "a.png", "size": -1}]}).encode(),
        json.dumps({**good, "slices": "1; rm"}).encode(),
    ]:
        assert client.ask("POST", "/api/jobs", body)[0] == 400, body[:60]
    for method, path in [
        *(("PUT", "/api/jobs/999/files/0"), ("DELETE", "/api/jobs/999"), ("GET", "/jobs/999"), ("GET", "/jobs/x")),
        *(("GET", "/results/job-999"), ("GET", "/results/..%2f..%2fetc/index"), ("GET", "/api/jobs/-1")),
        ("GET", "/results/job-" + "9" * 4000),
    ]:
        assert client.ask(method, path)[0] == 404, path
    assert client.json("GET", "/results/folder-1/cases/..%2f..")[0] in (400, 404)
    _, job = client.announce([("a.png", 3)])
    for index in ("1", "99999999999999999999"):
        assert client.ask("PUT", f"/api/jobs/{job['number']}/files/{index}", b"abc")[0] in (400, 404)
    assert client.json("POST", f"/api/jobs/{job['number']}/start")[0] == 400
    assert client.job(job["number"])["state"] == "failed"
    assert client.json("GET", "/api/state")[0] == 200


def test_a_broken_upload_is_given_up(viewer: Viewer, client: Client) -> None:
    _, job = client.announce([("a.png", 1000)])
    with socket.create_connection(("127.0.0.1", viewer.port)) as sending:
        sending.sendall(
            f"PUT /api/jobs/{job['number']}/files/0 HTTP/1.1\r\nHost: 127.0.0.1:{viewer.port}\r\n"
            f"Cookie: {client.cookie}\r\nContent-Length: 1000\r\n\r\nabc".encode()
        )
        while not list((viewer.folder / "files" / str(job["number"])).iterdir()):
            time.sleep(0.02)
    found = client.wait(job["number"])
    assert "stopped coming" in found["message"]
    assert viewer.left(f"files/{job['number']}") == []


# ------------------------------------------------------------------------------------------------ the queue


def many(count: int = 60) -> list[tuple[str, bytes]]:
    """Files that keep the tiny model busy for a while."""
    content = picture()
    return [(f"{index}.png", content) for index in range(count)]


def test_jobs_wait_for_their_turn_and_are_cancelled(viewer: Viewer, client: Client) -> None:
    running = client.drop(many(), "thor+", "simplex")
    client.wait(running, "running")
    second, third, fourth = (client.drop([("a.png", picture())]) for _ in range(3))
    assert [client.job(number)["position"] for number in (running, second, third, fourth)] == [None, 1, 2, 3]
    # A second client with the address sees the same, one without it nothing.
    other = viewer.client()
    assert [job["number"] for job in other.json("GET", "/api/state")[1]["jobs"]][:4] == [fourth, third, second, running]
    assert Client(viewer.port).ask("DELETE", f"/api/jobs/{running}")[0] == 403
    other.json("DELETE", f"/api/jobs/{second}")
    assert client.job(second)["state"] == "cancelled"
    assert client.job(third)["position"] == 1
    assert client.job(running)["state"] == "running"
    client.json("DELETE", f"/api/jobs/{running}")
    assert client.wait(running)["state"] == "cancelled"
    assert client.wait(third)["state"] == "done"
    assert client.wait(fourth)["state"] == "done"
    assert viewer.left(f"results/{running}") == []
    assert viewer.left("files/*") == []


def test_a_killed_worker_fails_its_job_and_no_other(viewer: Viewer, client: Client) -> None:
    running = client.drop(many(), "thor+", "simplex")
    waiting = client.drop([("a.png", picture())])
    client.wait(running, "running")
    killed = viewer.worker()
    os.kill(killed, signal.SIGKILL)
    job = client.wait(running)
    assert job["state"] == "failed"
    assert "ended before it was done" in job["message"]
    assert client.wait(waiting)["state"] == "done"
    assert viewer.worker() != killed
    assert viewer.left(f"results/{running}") == []
    assert viewer.left("files/*") == []


def test_a_worker_killed_while_it_waits_is_replaced(viewer: Viewer, client: Client) -> None:
    client.wait_for_offers()
    os.kill(viewer.worker(), signal.SIGKILL)
    assert client.wait(client.drop([("a.png", picture())]))["state"] == "done"


# ------------------------------------------------------------------------------------------------ results to browse


def test_folders_are_browsed_case_by_case(client: Client, folders: Path) -> None:
    state = client.json("GET", "/api/state")[1]
    assert [(folder["id"], folder["title"]) for folder in state["folders"]] == [
        ("folder-1", "pictures"),
        ("folder-2", "volumes"),
    ]
    _, index = client.index("folder-1")
    assert [case["status"] for case in index["cases"]][-1] == "failed"
    scores = [case["score"] for case in index["cases"] if case["status"] == "ok"]
    assert scores == sorted(scores, reverse=True)
    first = index["cases"][0]
    assert len(first["places"]) == first["findings"]
    _, (pictures,) = client.json("GET", f"/results/folder-1/cases/{first['key']}")
    assert (pictures["width"], pictures["height"]) == (first["width"], first["height"])
    kept = np.load(folders / "pictures" / "cases" / first["key"] / "anomaly_map.npy")
    assert pictures["maximum"] == pytest.approx(float(kept.max()))
    _, index = client.index("folder-2")
    assert len(index["cases"][0]["slices"]) == 3
    assert len(client.json("GET", f"/results/folder-2/cases/{index['cases'][0]['key']}")[1]) == 3


def test_a_damaged_case_is_told(client: Client, folders: Path) -> None:
    key = client.index("folder-2")[1]["cases"][0]["key"]
    overlay = min((folders / "volumes" / "cases" / key / "slices").iterdir()) / "overlay.png"
    content = overlay.read_bytes()
    overlay.write_bytes(b"")
    try:
        _, index = client.index("folder-2")
        assert index["cases"][0]["pictures"] is False
        assert "damaged" in index["cases"][0]["message"]
        status, answer = client.json("GET", f"/results/folder-2/cases/{key}")
        assert status == 400
        assert "damaged" in answer["message"]
    finally:
        overlay.write_bytes(content)


def test_a_folder_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start page asks for the summaries of all folders once a second."""
    make_results(tmp_path / "run", 3, failed=["bad"])
    reads: list[Path] = []
    read_folder = pages.read_folder

    def counting(path: Path) -> ResultFolder:
        reads.append(path)
        return read_folder(path)

    monkeypatch.setattr(pages, "read_folder", counting)
    results = pages.Results(tmp_path / "run", "run")
    first = results.summary()
    assert results.summary() == first
    assert len(reads) == 1
    case = tmp_path / "run" / "cases" / "bad" / "case.json"
    content = json.loads(case.read_text())
    case.write_text(json.dumps({**content, "status": "ok", "score": 0.1}))
    os.utime(case, ns=(case.stat().st_atime_ns, case.stat().st_mtime_ns + 1_000_000))  # whatever the clock's ticks
    assert results.summary() == {**first, "failed": first["failed"] - 1}
    shutil.rmtree(case.parent)
    assert results.summary()["cases"] == first["cases"] - 1
    assert len(reads) == 3
    (tmp_path / "run" / "run.json").unlink()
    assert "no such file" in results.summary()["message"]


# ------------------------------------------------------------------------------------------------ begin and end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a result folder"),
        (["--model", "nowhere"], "not a model folder"),
        (["--out", __file__], "can't be made"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["view", "--no-browser", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(viewer: Viewer) -> None:
    done = CliRunner().invoke(app, ["view", "--no-browser", "--port", str(viewer.port)])
    assert done.exit_code == 2
    assert "Leave --port out" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_nothing_is_left_at_the_end(tmp_path: Path, tiny_model: Path, number: int, code: int) -> None:
    with Viewer(tmp_path / "temporary", "--model", tiny_model) as viewer:
        assert viewer.folder.stat().st_mode & 0o777 == 0o700
        if number == signal.SIGTERM:  # in the middle of a job
            client = viewer.client()
            client.wait(client.drop(many(), "thor+", "simplex"), "running")
        returned, out, errors = viewer.end(number)
    assert returned == code, errors
    assert errors == ""
    if number == signal.SIGINT:
        assert "Scans processed: 0." in out
    assert list(viewer.temporary.iterdir()) == []


def test_a_killed_viewer_leaves_no_process_and_the_next_one_cleans_up(tmp_path: Path, tiny_model: Path) -> None:
    with Viewer(tmp_path / "temporary", "--model", tiny_model) as viewer:
        client = viewer.client()
        client.wait(client.drop(many(), "thor+", "simplex"), "running")
        worker, left = viewer.worker(), viewer.folder
        viewer.end(signal.SIGKILL)
    until = time.monotonic() + 20
    while time.monotonic() < until and subprocess.run(["ps", "-p", str(worker)], capture_output=True).returncode == 0:
        time.sleep(0.05)
    assert subprocess.run(["ps", "-p", str(worker)], capture_output=True).returncode != 0
    assert left.exists()
    with Viewer(tmp_path / "temporary") as following:
        assert not left.exists()
        assert following.folder.exists()


def test_folders_in_use_and_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "thorad-view-link").symlink_to(tmp_path.parent)
    (tmp_path / "thorad-viewer").mkdir()
    dead = tmp_path / "thorad-view-dead"
    dead.mkdir()
    (dead / LOCK).touch()
    with private_folder() as first:
        assert not dead.exists()
        with private_folder() as second:
            assert first.exists()
        assert not second.exists()
        assert first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thorad-view-link", "thorad-viewer"]
