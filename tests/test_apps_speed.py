import json
from pathlib import Path

import pytest
import torch

from thorad.apps import speed
from thorad.apps.speed import DetectionSpeed, NetworkSpeed, Speed, flops, matrix_product_gflops, measure_speed, timed
from thorad.model import build_network, load_model
from thorad.recipe import Recipe, load_recipe


@pytest.mark.parametrize(("recipe", "gflop"), [("brain-t1", 188), ("brain-t1-compact", 10)])
def test_operations_of_a_call(recipe: str, gflop: float) -> None:
    """At 128 x 128, as this project first counted them by hand. On the meta device nothing is computed."""
    with torch.device("meta"):
        network = build_network(load_recipe(recipe))
    assert flops(network, 128) / 1e9 == pytest.approx(gflop, rel=0.03)


def test_a_fold_of_two_is_an_image_of_half_the_side() -> None:
    """Apart from the first and last convolution, which see 4 channels instead of 1."""
    recipe = load_recipe("brain-t1-compact")
    unfolded = recipe.model_copy(update={"network": recipe.network.model_copy(update={"patch": 1})})
    with torch.device("meta"):
        folded, plain = build_network(recipe), build_network(unfolded)
    assert flops(folded, 128) == pytest.approx(flops(plain, 64), rel=0.02)


def test_a_matrix_product_has_a_speed() -> None:
    assert 0.01 < matrix_product_gflops(torch.float32, torch.device("cpu"), size=64) < 1e5


def test_time_is_measured() -> None:
    seconds, cpu_seconds = timed(lambda: sum(range(200_000)))
    assert 0 < seconds < 10
    assert 0 < cpu_seconds < 10


def test_ratios_to_the_published_code() -> None:
    """351 calls of 2 CPU-seconds against 1.404 and 9: 500 times less, 39 by fewer calls, 12.8 by cheaper ones."""
    speeds = Speed(
        "a machine", "cpu", 2, "bfloat16", {"bfloat16": 200.0}, [NetworkSpeed("compact", 4_640_000, 10, 0.1, 100, 0.5)],
        [
            DetectionSpeed("compact", "default", 9, 0.8, 1.404, None),
            DetectionSpeed("paper-size", "all", 204, 300, 600, 5),
        ], (1.1, 2.0), 6.0, 1.5,
    )  # fmt: skip
    detecting, networks, machine = speeds.tables()
    assert detecting.rows[0] == ["compact, default", "9", "0.80", "1.40", "500.0", "39.0", "12.8"]
    assert (
        "351 calls of the paper-size network in float32 would take 702 CPU-seconds on this machine"
        in detecting.notes[0]
    )
    assert detecting.rows[1][0] == "paper-size, all *", "an estimate is marked"
    assert networks.rows[0][-2:] == ["100", "50 %"]
    assert machine.rows[0][-1] == "6.0"
    for table in (detecting, networks, machine):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_whole_of_it_with_small_networks(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Recipe = load_model(tiny_model).recipe
    small = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 2})})
    monkeypatch.setattr(speed, "load_recipe", lambda name: small)
    monkeypatch.setattr(speed, "matrix_product_gflops", lambda dtype, device: 50.0)
    seen: list[tuple[int, int]] = []
    measured = measure_speed(tiny_model, device="cpu", on_progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(6)]
    assert [(each.network, each.steps, each.estimated_from_calls) for each in measured.detecting] == [
        ("compact", "default", None),
        ("compact", "all", None),
        ("paper-size", "default", None),
        ("paper-size", "all", speed.PAPER_CALLS),
    ]
    few, many, paper_few, paper_many = measured.detecting
    assert few.network_calls == paper_few.network_calls < many.network_calls == paper_many.network_calls == 204
    assert few.seconds < many.seconds
    assert paper_few.seconds < paper_many.seconds
    for network in measured.networks:
        assert network.gflops == pytest.approx(network.gflop_a_call / network.seconds_a_call)
        assert network.share_of_peak == pytest.approx(network.gflops / 50)
    assert measured.training_images_a_second > 0
    assert 0.1 < measured.peak_memory_gb < 100

    written = json.loads(json.dumps(measured.figures()))
    assert written["published"]["network_calls"] == 351
    seconds, cpu_seconds = measured.published_call
    assert 0 < seconds < 1
    assert written["published"]["cpu_seconds"] == 351 * cpu_seconds > 0
    assert len(written["detecting"]) == 4
