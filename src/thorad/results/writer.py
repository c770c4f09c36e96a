"""The layout of a result folder, which no other module knows.

    run.json                      what was run: options, versions, seconds, how many cases are done and failed
    cases.csv                     one line a case
    cases/<name>/case.json        what cases.csv is made of; written last, so a case that has it is complete
    cases/<name>/anomaly_map.npy  (H, W) float32 on the input's own grid, raw
    cases/<name>/pseudo_healthy.png  8-bit, where the method makes one
    cases/<name>/overlay.png      the image with the map over it, one colour scale for the whole run
    cases/<name>/mask.png         255 where that map is above the calibration's threshold; where the run has one

Every file is there whole or not at all, so a run that was killed goes on where it stopped.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thorad.data.images import write_npy, write_png8, write_whole
from thorad.data.tables import listing
from thorad.errors import ThoradError

COLUMNS = ("name", "source", "score", "p_value", "findings", "network_calls", "seconds", "status", "message")
"""Of cases.csv, where `findings` is their number; case.json lists them, each as `thorad.evaluation.findings` has it."""

COLOURS = np.array([(126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], dtype=np.float32)
"""Violet to yellow: the upper part of plasma, which rises evenly in lightness and reads the same without red or green.

Source: S. van der Walt and N. Smith, matplotlib colour maps (CC0).
"""

MAP, PSEUDO_HEALTHY, OVERLAY, MASK = "anomaly_map.npy", "pseudo_healthy.png", "overlay.png", "mask.png"


class Result(Protocol):
    """What one case leaves, as `thorad.Detection` has it."""

    @property
    def name(self) -> str:
        """Case id: the name of its folder."""

    @property
    def source(self) -> str:
        """The file it came from."""

    @property
    def image(self) -> NDArray[Any]:
        """(H, W) in [0, 1]."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W) >= 0, on the image's own grid."""

    @property
    def pseudo_healthy(self) -> NDArray[Any] | None:
        """(H, W) in [0, 1], or None."""

    @property
    def score(self) -> float:
        """Of the whole image."""

    @property
    def network_calls(self) -> int:
        """Spent on this case."""

    @property
    def seconds(self) -> float:
        """Spent on this case."""

    @property
    def p_value(self) -> float | None:
        """Of the score among healthy scans, or None without a calibration."""

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(H, W), the map above the calibration's threshold, or None."""

    @property
    def findings(self) -> Sequence[Any] | None:
        """The mask's components, as dataclasses, or None."""


class ResultWriter:
    """Write the cases of one run, or of one that was interrupted and goes on.

    Args:
        out: the result folder; made if need be.
        run: goes to run.json. `run["options"]` holds all that decides on the results (method, seed, the model's hash);
            a folder is continued only with the same options. The rest (versions, date) may differ.
        overlay_maximum: value of the anomaly map that gets the strongest colour: one for the run, so cases compare.

    Raises:
        ThoradError: the folder can't be written, or holds the results of other options.
    """

    def __init__(self, out: Path, run: dict[str, Any], *, overlay_maximum: float) -> None:
        if overlay_maximum <= 0:
            raise ValueError(f"overlay_maximum must be above 0, found {overlay_maximum}")
        self._out = out
        self._overlay_maximum = overlay_maximum
        # As JSON gives it back: tuples are lists, paths are text.
        self._run: dict[str, Any] = json.loads(_json({**run, "overlay_maximum": overlay_maximum}))
        before = self._run_before()
        self._seconds_before = float(before.get("seconds", 0.0))
        self._write_run(self._seconds_before, status="running")

    def done_cases(self) -> set[str]:
        """Names of the cases that need not be done again: not failed, all their files there in full length."""
        return {case["name"] for case in self._cases() if case["status"] == "ok" and self._is_whole(case)}

    def is_stale(self, name: str, source: Path) -> bool:
        """Whether a case's file was changed after the case was done."""
        case = self.case_folder(name) / "case.json"
        return case.is_file() and source.stat().st_mtime > case.stat().st_mtime

    def sources(self) -> dict[str, str]:
        """{name: the file it came from} of the cases that did not fail."""
        return {str(case["name"]): str(case["source"]) for case in self._cases() if case["status"] == "ok"}

    def scores(self) -> dict[str, float]:
        """{name: score} of the cases that have one, the highest first."""
        scores = {str(case["name"]): float(case["score"]) for case in self._cases() if case["status"] == "ok"}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))

    def judged(self) -> dict[str, tuple[float, int]]:
        """{name: (p-value, number of findings)} of the cases that have them."""
        return {
            str(case["name"]): (float(case["p_value"]), len(case["findings"]))
            for case in self._cases()
            if case["p_value"] is not None
        }

    def case_folder(self, name: str) -> Path:
        """Where the files of a case lie."""
        return self._out / "cases" / name

    def write(self, result: Result) -> None:
        """Write one case.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        folder = self._clear(result.name)
        write_npy(folder / MAP, result.anomaly_map.astype(np.float32))
        if result.pseudo_healthy is not None:
            write_png8(folder / PSEUDO_HEALTHY, result.pseudo_healthy)
        write_png8(folder / OVERLAY, overlay(result.image, result.anomaly_map, self._overlay_maximum))
        if result.mask is not None:
            write_png8(folder / MASK, np.where(result.mask, 255, 0).astype(np.uint8))
        files = [file for file in (MAP, OVERLAY, PSEUDO_HEALTHY, MASK) if (folder / file).is_file()]
        self._write_case(
            folder,
            name=result.name,
            source=result.source,
            score=float(result.score),
            p_value=result.p_value,
            findings=None if result.findings is None else [asdict(finding) for finding in result.findings],
            network_calls=int(result.network_calls),
            seconds=float(result.seconds),
            status="ok",
            message="",
            sizes={file: (folder / file).stat().st_size for file in files},
        )

    def fail(self, name: str, source: str, message: str) -> None:
        """Record that a case failed, and why. It is tried again when the run goes on.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        self._write_case(
            self._clear(name),
            name=name,
            source=source,
            score=None,
            p_value=None,
            findings=None,
            network_calls=None,
            seconds=None,
            status="failed",
            message=message,
            sizes={},
        )

    def close(self, seconds: float) -> None:
        """Write cases.csv, from all cases in the folder, and the final run.json.

        Args:
            seconds: wall time of this run; run.json holds the sum with those of the runs it continues.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        cases = sorted(self._cases(), key=lambda case: str(case["name"]))
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(COLUMNS)
        for case in cases:
            count = None if case["findings"] is None else len(case["findings"])
            rows.writerow({**case, "findings": count}[column] for column in COLUMNS)
        # A source may hold bytes that are no UTF-8; it is still to be told.
        write_whole(self._out / "cases.csv", table.getvalue().encode(errors="backslashreplace"))
        failed = sum(case["status"] == "failed" for case in cases)
        self._write_run(
            self._seconds_before + seconds, status="finished", cases={"ok": len(cases) - failed, "failed": failed}
        )

    def _run_before(self) -> dict[str, Any]:
        """run.json of the run that is to go on; empty for a new one."""
        path = self._out / "run.json"
        try:
            before = json.loads(path.read_bytes())
            options = {**before["options"], "overlay_maximum": before["overlay_maximum"]}
            seconds = float(before.get("seconds", 0))
        except FileNotFoundError:
            if (self._out / "cases").exists():
                raise ThoradError(
                    f"{self._out}: has a folder cases, but no run.json says how they were made. Choose another --out."
                ) from None
            return {}
        except NotADirectoryError as error:
            raise ThoradError(f"{self._out}: a file stands where a folder is needed. Choose another --out.") from error
        except OSError as error:
            raise ThoradError(f"{path}: can't be read ({error.strerror}). Choose another --out.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ThoradError(f"{path}: not the run.json of a result folder. Choose another --out.") from error
        wanted = {**self._run["options"], "overlay_maximum": self._run["overlay_maximum"]}
        different = [
            f"{name} (there {options.get(name)!r}, now {wanted.get(name)!r})"
            for name in sorted(options.keys() | wanted.keys())
            if options.get(name) != wanted.get(name)
        ]
        if different:
            raise ThoradError(
                f"{self._out}: holds results of other options: {listing(different)}. "
                "Choose another --out, or the same options to go on with it."
            )
        return {"seconds": seconds}

    def _write_run(self, seconds: float, **state: Any) -> None:
        write_whole(self._out / "run.json", _json({**self._run, **state, "seconds": seconds}))

    def _clear(self, name: str) -> Path:
        """The case's folder without what an interrupted or failed try has left; case.json goes first."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"a case's name must be usable as a folder's name, found {name!r}")
        folder = self.case_folder(name)
        try:
            for file in ("case.json", MAP, PSEUDO_HEALTHY, OVERLAY, MASK):
                (folder / file).unlink(missing_ok=True)
        except OSError as error:
            raise ThoradError(f"{folder}: can't be written ({error.strerror}). Choose another --out.") from error
        return folder

    def _write_case(self, folder: Path, **case: Any) -> None:
        write_whole(folder / "case.json", _json(case))

    def _cases(self) -> list[dict[str, Any]]:
        cases = []
        for path in (self._out / "cases").glob("*/case.json"):
            try:
                case = json.loads(path.read_bytes())
                # Results that were written before there were calibrations have neither of the two.
                case = {"p_value": None, "findings": None, **case}
                cases.append({key: case[key] for key in (*COLUMNS, "sizes")})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ThoradError(f"{path}: damaged ({error}). Delete it, and the case is done again.") from error
        return cases

    def _is_whole(self, case: dict[str, Any]) -> bool:
        folder = self.case_folder(str(case["name"]))
        return all(
            (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in case["sizes"].items()
        )


def overlay(image: NDArray[Any], anomaly_map: NDArray[Any], maximum: float) -> NDArray[np.uint8]:
    """Lay the map in colours over the image in grey; the higher the map, the less of the image shows.

    Args:
        image: (H, W) in [0, 1].
        anomaly_map: (H, W); 0 and below leave the image as it is, `maximum` and above hide it.
        maximum: value of the strongest colour, above 0.

    Returns:
        (H, W, 3) uint8.
    """
    height = np.clip(anomaly_map / maximum, 0, 1).astype(np.float32)  # (H, W)
    grey = (1 - height) * 255 * np.clip(image, 0, 1)
    blended = np.empty((*height.shape, 3), np.uint8)
    for channel, levels in enumerate(COLOURS.T):
        colour = np.interp(height, np.linspace(0, 1, len(levels)), levels)
        blended[..., channel] = np.rint(height * colour + grey)
    return blended


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
